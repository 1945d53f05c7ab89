/** The plan as a picture: a fan of what is to come and a heat map of the week, for the whole and its hottest subsets. */
import { HOUR_MS } from '../../predict/series.js';
import { slotOfWeek, zoneOffset, type ZoneOffset } from '../../predict/local-time.js';
import type { PlanReport, SubsetReport } from './plan-report.js';
import { alike, rate } from './plan-text.js';

const WIDTH = 960;
const FAN_HEIGHT = 150;
const MARGIN = 56;
const MAP_CELL = { width: (WIDTH - 2 * MARGIN) / 24, height: 13 } as const;
const GAP = 28;
const TOP = 68;
const SUBSETS_DRAWN = 6;
/** Before the present, so much is drawn beside what is to come. */
const PAST_HOURS = 168;
const DAYS = ['Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat', 'Sun'];
const MAP_STEPS = 9;

const STYLE = `
  :root { color-scheme: light dark; }
  .ground { fill: #ffffff } .ink { fill: #1c2430 } .faint { fill: #667085 } .grid { stroke: #e4e7ec }
  polyline { stroke-linecap: round; stroke-width: 1.5 }
  .past { stroke: #344054; fill: none } .median { stroke: #b54708; fill: none } .band { fill: #f79009; fill-opacity: .25 }
  .now { stroke: #98a2b3; stroke-dasharray: 3 3 } .window { fill: #12b76a; fill-opacity: .7 } .none { fill: #f2f4f7 }
  .h0 { fill: #fef6ee } .h1 { fill: #fdead7 } .h2 { fill: #f9dbaf } .h3 { fill: #f7b27a } .h4 { fill: #f38744 }
  .h5 { fill: #ef6820 } .h6 { fill: #e04f16 } .h7 { fill: #b93815 } .h8 { fill: #772917 }
  text { font: 12px system-ui, sans-serif } .title { font-size: 15px; font-weight: 600 } .small { font-size: 10px }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0f141b } .ink { fill: #e6eaf0 } .faint { fill: #98a2b3 } .grid { stroke: #28303b }
    .past { stroke: #cbd5e1 } .median { stroke: #fdb022 } .band { fill: #fdb022 } .now { stroke: #667085 } .none { fill: #1a212b }
    .h0 { fill: #1f1a17 } .h1 { fill: #36241b } .h2 { fill: #51301e } .h3 { fill: #72401f } .h4 { fill: #9a5420 }
    .h5 { fill: #c66a1f } .h6 { fill: #ef8421 } .h7 { fill: #fdb022 } .h8 { fill: #fee4a0 }
  }`;

/** A whole SVG document; no script, no reference to anything outside of it. */
export function planSvg(plan: PlanReport): string {
  const drawn = [plan.whole, ...plan.subsets.slice(0, SUBSETS_DRAWN)];
  const blockHeight = 40 + FAN_HEIGHT + GAP + 7 * MAP_CELL.height + 40;
  const height = TOP + drawn.length * blockHeight;
  const offset = zoneOffset(plan.zone);
  const blocks = drawn.map((subset, index) =>
    block(plan, subset, TOP + index * blockHeight, index === 0, offset),
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="Plan as of ${plan.asOf}">
<style>${STYLE}</style>
<rect class="ground" width="${WIDTH}" height="${height}"/>
<text class="ink title" x="${MARGIN}" y="26">Plan as of ${plan.asOf.slice(0, 16).replace('T', ' ')} UTC</text>
<text class="faint" x="${MARGIN}" y="44">heat in accesses a second, writes weighted 3; band: nine times of ten; green: the best window; below, the mean by hour of the week</text>
${blocks.join('\n')}
</svg>
`;
}

function block(
  plan: PlanReport,
  subset: SubsetReport,
  top: number,
  whole: boolean,
  offset: ZoneOffset,
): string {
  const name = whole ? 'The whole database' : subset.subset;
  const title = subset.side === 'destination' ? `${name} (led by the destination)` : name;
  const tables = `${subset.tables.length} ${subset.tables.length === 1 ? 'table' : 'tables'}`;
  return `<g transform="translate(0 ${top})">
<text class="ink title" x="${MARGIN}" y="14">${escaped(title)}</text>
<text class="faint" x="${WIDTH - MARGIN}" y="14" text-anchor="end">${tables}</text>
${fan(plan, subset, 26, offset)}
${heatMap(subset, 26 + FAN_HEIGHT + GAP, plan.zone, offset)}
</g>`;
}

function fan(plan: PlanReport, subset: SubsetReport, top: number, offset: ZoneOffset): string {
  const { forecast } = subset;
  const nowMs = Math.floor(Date.parse(plan.asOf) / HOUR_MS) * HOUR_MS;
  const past = pastOf(subset, nowMs);
  const hours = PAST_HOURS + forecast.length;
  const peak = Math.max(1e-9, ...past.map((value) => value ?? 0), ...forecast.map(({ high }) => high));
  const x = (hour: number): number => MARGIN + ((WIDTH - 2 * MARGIN) * hour) / hours;
  const y = (value: number): number => top + FAN_HEIGHT - (FAN_HEIGHT * Math.min(value, peak)) / peak;
  const point = (hour: number, value: number): string => `${x(hour).toFixed(1)},${y(value).toFixed(1)}`;
  const ahead = forecast.map(({ median }, hour) => point(PAST_HOURS + hour, median));
  const upper = forecast.map(({ high }, hour) => point(PAST_HOURS + hour, high));
  const lower = forecast.map(({ low }, hour) => point(PAST_HOURS + hour, low)).reverse();
  // Where one hour can't be told from another, none is the best.
  const window = alike(subset) ? undefined : subset.windows[0];
  const windowHour = window === undefined ? null : PAST_HOURS + (Date.parse(window.start) - nowMs) / HOUR_MS;
  return [
    ...[0, 0.5, 1].map((share) => {
      const at = y(peak * share).toFixed(1);
      return `<line class="grid" x1="${MARGIN}" x2="${WIDTH - MARGIN}" y1="${at}" y2="${at}"/><text class="faint small" x="${MARGIN - 6}" y="${Number(at) + 3}" text-anchor="end">${rate(peak * share)}</text>`;
    }),
    windowHour === null
      ? ''
      : `<rect class="window" x="${x(windowHour).toFixed(1)}" y="${top}" width="${Math.max(3, x(1) - x(0)).toFixed(1)}" height="${FAN_HEIGHT}"><title>best window ${window?.start ?? ''}</title></rect>`,
    upper.length === 0 ? '' : `<polygon class="band" points="${[...upper, ...lower].join(' ')}"/>`,
    ...pieces(past, point).map((points) => `<polyline class="past" points="${points}"/>`),
    `<polyline class="median" points="${ahead.join(' ')}"/>`,
    `<line class="now" x1="${x(PAST_HOURS).toFixed(1)}" x2="${x(PAST_HOURS).toFixed(1)}" y1="${top}" y2="${top + FAN_HEIGHT}"/>`,
    ...dayLabels(nowMs, hours, x, top + FAN_HEIGHT + 12, offset),
  ].join('\n');
}

/** The last week by the hour, null where nothing was watched. */
function pastOf({ history, historyStart }: SubsetReport, nowMs: number): readonly (number | null)[] {
  const startMs = historyStart === null ? nowMs : Date.parse(historyStart);
  return Array.from({ length: PAST_HOURS }, (_, hour) => {
    const index = Math.round((nowMs - (PAST_HOURS - hour) * HOUR_MS - startMs) / HOUR_MS);
    return history[index] ?? null;
  });
}

/** Runs of hours that were watched. */
function pieces(
  past: readonly (number | null)[],
  point: (hour: number, value: number) => string,
): readonly string[] {
  const runs: string[][] = [];
  let open: string[] | undefined;
  for (const [hour, value] of past.entries()) {
    if (value === null) {
      open = undefined;
      continue;
    }
    if (open === undefined) runs.push((open = []));
    open.push(point(hour, value));
  }
  return runs.map((run) => (run.length === 1 ? `${run[0] ?? ''} ${run[0] ?? ''}` : run.join(' ')));
}

/** At midnight on the clock that the plan follows, or in the hour after it. */
function dayLabels(
  nowMs: number,
  hours: number,
  x: (hour: number) => number,
  y: number,
  offset: ZoneOffset,
): readonly string[] {
  const labels: string[] = [];
  for (let hour = 0; hour < hours; hour++) {
    const atMs = nowMs + (hour - PAST_HOURS) * HOUR_MS;
    const at = new Date(atMs + offset(atMs));
    if (at.getUTCHours() !== 0 || x(hour) > WIDTH - MARGIN - 30) continue;
    labels.push(
      `<text class="faint small" x="${x(hour).toFixed(1)}" y="${y}">${at.toISOString().slice(5, 10)}</text>`,
    );
  }
  return labels;
}

/** Mean heat by hour of the week, on the clock that the plan follows. */
function heatMap(subset: SubsetReport, top: number, zone: string, offset: ZoneOffset): string {
  const sums = new Float64Array(168);
  const counts = new Float64Array(168);
  const startMs = subset.historyStart === null ? 0 : Date.parse(subset.historyStart);
  for (const [hour, value] of subset.history.entries()) {
    if (value === null) continue;
    const atMs = startMs + hour * HOUR_MS;
    const slot = slotOfWeek(atMs + offset(atMs), HOUR_MS);
    sums[slot] = (sums[slot] ?? 0) + value;
    counts[slot] = (counts[slot] ?? 0) + 1;
  }
  const means = Array.from(sums, (sum, slot) => (counts[slot] === 0 ? null : sum / (counts[slot] ?? 1)));
  const peak = Math.max(1e-9, ...means.map((mean) => mean ?? 0));
  const cells = means.map((mean, slot) => {
    const [day, hour] = [Math.floor(slot / 24), slot % 24];
    const shade =
      mean === null ? 'none' : `h${Math.min(MAP_STEPS - 1, Math.floor((mean / peak) * MAP_STEPS))}`;
    const says = `${DAYS[day] ?? ''} ${String(hour).padStart(2, '0')}:00 ${mean === null ? 'not watched' : `${rate(mean)}/s`}`;
    return `<rect class="${shade}" x="${(MARGIN + hour * MAP_CELL.width).toFixed(1)}" y="${top + day * MAP_CELL.height}" width="${(MAP_CELL.width - 1).toFixed(1)}" height="${MAP_CELL.height - 1}"><title>${says}</title></rect>`;
  });
  const days = DAYS.map(
    (day, at) =>
      `<text class="faint small" x="${MARGIN - 6}" y="${top + at * MAP_CELL.height + 10}" text-anchor="end">${day}</text>`,
  );
  const hours = [0, 6, 12, 18].map(
    (hour) =>
      `<text class="faint small" x="${(MARGIN + hour * MAP_CELL.width).toFixed(1)}" y="${top + 7 * MAP_CELL.height + 11}">${String(hour).padStart(2, '0')}:00</text>`,
  );
  const clock = `<text class="faint small" x="${WIDTH - MARGIN}" y="${top + 7 * MAP_CELL.height + 11}" text-anchor="end">${escaped(zone)}</text>`;
  return [...cells, ...days, ...hours, clock].join('');
}

function escaped(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}
