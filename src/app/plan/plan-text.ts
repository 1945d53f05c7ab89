/** The plan as text: two tables, windows, what is not known; and everything behind one subset. */
import type { Judgement } from '../../predict/judgement.js';
import { borderLines } from '../cli/border-lines.js';
import { formatBytes, formatCount, formatDuration, table } from '../cli/format.js';
import type { Duration, PlanReport, SubsetReport, WindowReport } from './plan-report.js';

const SUBSETS_SHOWN = 25;
const UNKNOWN = '?';

/** Said where nothing was learnt. */
export const WHAT_TO_LOG =
  'Logs hold statements where log_min_duration_statement is 0, or log_statement is all; a sample of them will do.';

export function planLines(plan: PlanReport): readonly string[] {
  if (plan.whole.tables.length === 0)
    return [
      plan.observed === null
        ? `Nothing observed yet, from ${plan.origin}`
        : `Plan as of ${plan.asOf}, ${observedText(plan)}, from ${plan.origin}`,
      'No use of any table was seen: there is nothing to plan.',
      WHAT_TO_LOG,
      ...plan.notes,
      ...unknownLines(plan),
    ];
  const shown = plan.subsets.slice(0, SUBSETS_SHOWN);
  const more = plan.subsets.length - shown.length;
  return [
    `Plan as of ${plan.asOf}, ${observedText(plan)}, from ${plan.origin}`,
    ...(plan.shadow === null ? [] : [`The shadow is ${plan.shadow}`]),
    ...(plan.format === null || plan.format === 'identity'
      ? []
      : [`The destination has a form of its own: ${plan.format}`]),
    '',
    'What to shadow first (heat in accesses a second, writes weighted 3; in brackets where it lies nine times of ten)',
    ...table(
      [
        '#>',
        'subset',
        'tables>',
        'size>',
        ...(plan.shadow === null ? [] : ['to copy>']),
        'now>',
        'next hour',
        'next day',
        'hot keys',
        'crosses>',
      ],
      shown.map((subset, index) => [
        String(index + 1),
        subset.subset,
        formatCount(subset.tables.length),
        sizeText(subset.bytes),
        ...(plan.shadow === null ? [] : [sizeText(subset.bytesLeft)]),
        rate(subset.heat.now.value),
        withInterval(subset.heat.nextHour, rate),
        withInterval(subset.heat.nextDay, rate),
        hotText(subset),
        crossingText(subset),
      ]),
    ),
    ...(more > 0 ? [`and ${more} more: --json has all`] : []),
    '',
    'How eagerly, and when',
    ...table(
      ['#>', 'subset', 'diverges (c, d, m)', 'intensity>', 'copied in', 'ready in', 'best window', 'stall'],
      [
        ...shown.map((subset, index) => [String(index + 1), ...schedule(subset, plan)]),
        ['', ...schedule(plan.whole, plan)],
      ],
    ),
    '',
    ...windowLines(plan),
    ...(plan.borders.length === 0
      ? []
      : ['', 'What ties the configured subsets', ...borderLines(plan.borders)]),
    ...plan.notes,
    ...unknownLines(plan),
  ];
}

function unknownLines({ unknown }: PlanReport): readonly string[] {
  return unknown.length === 0 ? [] : ['', 'Not known', ...unknown.map((one) => `  ${one}`)];
}

function observedText({ observed }: PlanReport): string {
  if (observed === null) return 'nothing observed yet';
  return `${hoursText(observed.hours)} observed`;
}

function hoursText(hours: number): string {
  if (hours < 2) return `${Math.max(1, Math.round(hours * 60))} min`;
  return hours < 48 ? `${Math.round(hours)} h` : `${Math.floor(hours / 24)} days`;
}

function sizeText(bytes: number | null): string {
  return bytes === null ? UNKNOWN : formatBytes(bytes);
}

/** What has been copied takes no time any more, and is not ready before the shadow follows. */
function doneText(subset: SubsetReport, { shadow }: PlanReport): readonly [copied: string, ready: string] {
  if (shadow === null || subset.bytesLeft !== 0 || subset.bytes === null)
    return [durationText(subset.copySeconds), durationText(subset.readySeconds)];
  return ['done', shadow === 'following' ? 'done' : shadow];
}

function schedule(subset: SubsetReport, plan: PlanReport): readonly string[] {
  const window = subset.windows[0];
  return [
    subset.side === 'destination' ? `${subset.subset} (switched)` : subset.subset,
    divergenceText(subset.divergence),
    subset.divergence.confidence === 'none' ? UNKNOWN : subset.intensity.value.toFixed(2),
    ...doneText(subset, plan),
    window === undefined
      ? subset.converges === false
        ? 'none: does not catch up'
        : 'none'
      : alike(subset)
        ? 'any hour: too little seen'
        : windowText(window),
    window === undefined ? '' : stallText(window),
  ];
}

/** No hour can be told from another: one watched minute, or one watched hour, has no rhythm. */
export function alike({ heat: { nextDay } }: SubsetReport): boolean {
  return nextDay.confidence === 'none' || nextDay.confidence === 'low';
}

function windowLines({ whole, configured }: PlanReport): readonly string[] {
  if (whole.windows.length === 0)
    return [
      whole.converges === false
        ? 'No window: at these rates the shadow never catches up with what is written.'
        : 'No window within what is looked ahead.',
    ];
  const [first] = whole.windows;
  if (alike(whole) && first !== undefined)
    return [
      `Too little was seen to tell one hour from another: in any, a cutover might make clients wait ${stallText(first)}.`,
      'Windows show after a day or two of traffic, and habits of the week after two weeks.',
    ];
  return [
    configured
      ? 'Best windows for the whole database, which is what the last subset’s switch moves'
      : 'Best windows for the whole database, which is what a cutover moves',
    ...whole.windows.map(
      (window, index) =>
        `  ${index + 1}. ${windowText(window)}  stall ${stallText(window)}, ${tenths(window.stalledStatements.value)} statements held` +
        (window.regret > 0 ? ` (${tenths(window.regret)} more than the best)` : '') +
        (window.abortProbability > 0.01
          ? `; ${(window.abortProbability * 100).toFixed(0)} % that the drain deadline aborts it`
          : ''),
    ),
  ];
}

function tenths(value: number): string {
  return value > 0 && value < 0.05 ? '<0.1' : value.toFixed(1);
}

const DAYS = ['Sun', 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat'];

function windowText({ start, end }: WindowReport): string {
  const day = DAYS[new Date(start).getUTCDay()] ?? '';
  return `${day} ${start.slice(0, 16).replace('T', ' ')}–${end.slice(11, 16)} UTC`;
}

/** A prediction: no digit that nobody can vouch for. */
function aboutMs(ms: number): string {
  if (ms >= 1000) return formatDuration(ms / 1000);
  return ms > 0 && ms < 1 ? '<1 ms' : `${Math.round(ms)} ms`;
}

function stallText({ stallMs }: WindowReport): string {
  return `${aboutMs(stallMs.value)} (${aboutMs(stallMs.low)} – ${aboutMs(stallMs.high)})`;
}

const STALL_TERMS: Readonly<Record<string, string>> = {
  drainMs: 'drain',
  applyMs: 'fence and final apply',
  verifyMs: 'verify',
  switchMs: 'commit and switch',
};

function stallTermsText({ stallTerms }: WindowReport): string {
  return Object.entries(stallTerms)
    .map(([term, ms]) => `${STALL_TERMS[term] ?? term} ${aboutMs(ms)}`)
    .join(', ');
}

export function divergenceText({ value, terms, confidence }: Judgement): string {
  const term = (name: string): string => terms[name]?.toFixed(2) ?? UNKNOWN;
  const score = confidence === 'none' ? UNKNOWN : value.toFixed(2);
  return `${score} (${term('c')}, ${term('d')}, ${term('m')})`;
}

function hotText({ hot }: SubsetReport): string {
  return hot === null ? UNKNOWN : `${formatCount(hot.keys)} have ${(hot.share * 100).toFixed(0)} %`;
}

/** Pairs of tables leave open how much: the two bounds where they differ. */
function crossingText({ crossing }: SubsetReport): string {
  const percent = (share: number): string => (share * 100).toFixed(share > 0 && share < 0.01 ? 1 : 0);
  const [low, high] = [percent(crossing.low), percent(crossing.high)];
  return low === high ? `${low} %` : `${low}–${high} %`;
}

function durationText(duration: Duration | null): string {
  if (duration === null) return UNKNOWN;
  const { value, low, high } = duration;
  const text = (seconds: number | null): string => (seconds === null ? 'never' : formatDuration(seconds));
  return value === low && value === high ? text(value) : `${text(value)} (${text(low)} – ${text(high)})`;
}

export function rate(perSecond: number): string {
  if (perSecond > 0 && perSecond < 0.0005) return '<0.001';
  if (perSecond >= 1000) return formatCount(perSecond);
  return perSecond.toFixed(perSecond >= 100 ? 0 : perSecond >= 1 ? 1 : perSecond === 0 ? 0 : 3);
}

function withInterval({ value, low, high, confidence }: Judgement, text: (value: number) => string): string {
  if (confidence === 'none') return UNKNOWN;
  return value === low && value === high ? text(value) : `${text(value)} (${text(low)} – ${text(high)})`;
}

/** Every term, interval and reason behind one subset's row. */
export function explainLines(plan: PlanReport, subset: SubsetReport): readonly string[] {
  const place = plan.subsets.indexOf(subset);
  const judgements: readonly (readonly [string, Judgement])[] = [
    ['heat now', subset.heat.now],
    ['heat, next hour', subset.heat.nextHour],
    ['heat, next day', subset.heat.nextDay],
    ['divergence', subset.divergence],
    ['priority', subset.priority],
    ['intensity', subset.intensity],
  ];
  return [
    `${subset.subset}${place < 0 ? '' : `, ${place + 1} of ${plan.subsets.length} by priority`}, as of ${plan.asOf}`,
    ...(subset.side === null ? [] : [`${field('led by')}the ${subset.side}`]),
    `${field('tables')}${subset.tables.join(', ')}`,
    `${field('size')}${subset.bytes === null ? 'not known' : `${formatBytes(subset.bytes)}, ${leftText(subset)}`}`,
    ...(subset.growthPerDay === null
      ? []
      : [`${field('grows')}${growthText(subset.growthPerDay)}`, `${field('')}${subset.growthPerDay.reason}`]),
    ...judgements.flatMap(([name, judgement]) => judgementLines(name, judgement)),
    ...durationLines('copied in', subset.copySeconds),
    ...durationLines('ready in', subset.readySeconds),
    ...(subset.hot === null ? [`${field('hot share')}not known`] : judgementLines('hot share', subset.hot)),
    ...crossingLines(subset),
    ...tieLines(subset),
    ...(subset.together.length === 0 ? [] : [`${field('switched with')}${subset.together.join(', ')}`]),
    ...(subset.windows.length === 0 ? [`${field('windows')}none`] : ['windows']),
    ...subset.windows.flatMap((window) => [
      `  ${windowText(window)}  stall ${stallText(window)}`,
      `    ${stallTermsText(window)}`,
      `    ${window.stalledStatements.value.toFixed(1)} statements held (${window.stalledStatements.low.toFixed(1)} – ${window.stalledStatements.high.toFixed(1)}) at ${rate(window.statementsPerSecond)}/s; ${window.reason}`,
    ]),
    'notes',
    ...subset.notes.map((note) => `  ${note}`),
    ...plan.unknown.map((note) => `  ${note}`),
  ];
}

function field(name: string): string {
  return name.padEnd(17);
}

function growthText({ value, low, high }: Judgement): string {
  const signed = (bytes: number): string =>
    `${bytes < 0 ? '−' : ''}${formatBytes(Math.abs(Math.round(bytes)))}`;
  return `by ${signed(value)} a day (${signed(low)} – ${signed(high)})`;
}

function leftText({ bytes, bytesLeft }: SubsetReport): string {
  if (bytesLeft === 0 && bytes !== 0) return 'all of it copied';
  return `${sizeText(bytesLeft)} of them still to copy`;
}

function judgementLines(name: string, { value, low, high, terms, confidence, reason }: Judgement): string[] {
  return [
    `${field(name)}${figure(value)} (${figure(low)} – ${figure(high)}), confidence ${confidence}`,
    `${field('')}${reason}${termsText(terms)}`,
  ];
}

function termsText(terms: Judgement['terms']): string {
  const parts = Object.entries(terms).map(([term, part]) => `${term} ${figure(part)}`);
  return parts.length === 0 ? '' : `  [${parts.join(', ')}]`;
}

function durationLines(name: string, duration: Duration | null): string[] {
  if (duration === null) return [`${field(name)}not known`];
  return [
    `${field(name)}${durationText(duration)}, confidence ${duration.confidence}`,
    `${field('')}${duration.reason}${termsText(duration.terms)}`,
  ];
}

function crossingLines(subset: SubsetReport): string[] {
  const { crossing } = subset;
  const with_ = crossing.with
    .slice(0, 8)
    .map((other) => `${other.with} (${(other.share * 100).toFixed(1)} % of the smaller’s)`);
  return [
    `${field('crosses')}${crossingText(subset)} of its transactions touch another subset${with_.length === 0 ? '' : `: ${with_.join(', ')}`}`,
  ];
}

function tieLines({ ties }: SubsetReport): string[] {
  if (ties.length === 0) return [];
  const shown = ties.slice(0, 20).map(({ a, b, by }) => `  ${a} – ${b}: ${by}`);
  return [
    'tied by',
    ...shown,
    ...(ties.length > shown.length ? [`  and ${ties.length - shown.length} more`] : []),
  ];
}

/** Not to be read as exact: four digits. */
function figure(value: number | null): string {
  if (value === null) return 'never';
  if (value === 0 || Number.isInteger(value)) return formatCount(value);
  return Math.abs(value) >= 10_000 ? formatCount(value) : String(Number(value.toPrecision(4)));
}
