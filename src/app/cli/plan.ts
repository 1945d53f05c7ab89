/** `understudy plan`: what is hot, what a shadow of it costs, and when to switch. */
import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { UnderstudyError } from '../../core/errors.js';
import { WHOLE_DATABASE, type Side } from '../../core/ports.js';
import type { SeriesBatch } from '../../core/capture-ports.js';
import type { AdminClient } from '../admin-client.js';
import { Decisions, type DecisionRecord } from '../autopilot/decisions.js';
import { pastSizes } from '../autopilot/past-sizes.js';
import type { ResolvedConfig } from '../config.js';
import { makePlanReport, PLAN_DEFAULTS, type PlanRequest } from '../plan/make.js';
import { formatText, liveShadow, type LiveShadow } from '../plan/measurements.js';
import { measuredSwitch } from '../plan/past-switches.js';
import type { PlanReport, SubsetReport } from '../plan/plan-report.js';
import { planSvg } from '../plan/plan-svg.js';
import { yamlLines } from '../plan/plan-yaml.js';
import { explainLines, planLines } from '../plan/plan-text.js';
import { dataFromBatches, type PlanData } from '../plan/series-data.js';
import { closureOf, keptSeries } from '../plan/sources.js';
import { readSeriesFile, SERIES_FILE } from '../series-file.js';
import { EXIT, type ExitCode } from './exit-codes.js';
import { bar } from './format.js';
import { decisionLines } from './log.js';
import type { Terminal } from './terminal.js';

export interface PlanVerb {
  readonly series: readonly string[];
  readonly svg: string | undefined;
  /** Instead of the plan, the subsets it proposes, as configuration. */
  readonly yaml: boolean;
  readonly explain: string | undefined;
  readonly timezone: string | undefined;
  /** Days of the kept series that are read. */
  readonly days: number;
}

/** Where no configuration says otherwise. */
const DRAIN_TIMEOUT_MS = 5_000;
const STALE_ALLOWANCE_MS = 1_000;
/** Operations that are looked through for how long a switch takes. */
const PAST_SWITCHES = 30;
const DECISIONS_LOOKED_AT = 500;
const DECISIONS_SHOWN = 5;

/** `config`: null where there is none; then `--series` has to say it all. `admin`: of a process that may be running. */
export async function runPlan(
  terminal: Terminal,
  verb: PlanVerb,
  config: ResolvedConfig | null,
  admin: () => AdminClient,
): Promise<ExitCode> {
  const lone = config === null && verb.series.length === 0;
  if (lone && !existsSync(SERIES_FILE))
    throw new UnderstudyError('config-invalid', 'a plan needs series: --series FILE, or a configuration', {
      advice: `Read logs first: \`understudy import-log FILE…\` keeps what they say in ${SERIES_FILE}.`,
    });
  const stop = new AbortController();
  const onSignal = (): void => stop.abort(new UnderstudyError('cancelled', 'planning was stopped'));
  process.on('SIGINT', onSignal);
  try {
    const plan = await planOf(
      terminal,
      lone ? { ...verb, series: [SERIES_FILE] } : verb,
      config,
      admin,
      stop.signal,
    );
    if (verb.svg !== undefined) await writeSvg(verb.svg, plan);
    if (verb.yaml) {
      for (const line of yamlLines(plan)) terminal.line(line);
      terminal.result(plan);
      return EXIT.ok;
    }
    if (verb.explain === undefined) {
      for (const line of planLines(plan)) terminal.line(line);
      if (verb.svg !== undefined) terminal.line(`drawn in ${verb.svg}`);
      terminal.result(plan);
      return EXIT.ok;
    }
    const subset = subsetNamed(plan, verb.explain);
    for (const line of explainLines(plan, subset)) terminal.line(line);
    const decisions = config === null ? [] : await decisionsOn(config, subset.subset);
    if (decisions.length > 0) terminal.line('decided lately (all of it: `understudy log`)');
    for (const decision of decisions) for (const line of decisionLines(decision)) terminal.line(`  ${line}`);
    terminal.result({ ...plan, subsets: [subset], decisions });
    return EXIT.ok;
  } finally {
    process.off('SIGINT', onSignal);
  }
}

async function planOf(
  terminal: Terminal,
  verb: PlanVerb,
  config: ResolvedConfig | null,
  admin: () => AdminClient,
  signal: AbortSignal,
): Promise<PlanReport> {
  const nowMs = Date.now();
  const fromFiles = verb.series.length > 0;
  const data = fromFiles
    ? await dataFromBatches(batchesOf(verb.series), verb.series.join(', '))
    : await kept(config, nowMs, verb.days);
  // Files alone are a plan for those who have no more than files: nobody is asked who may be out of reach.
  const running = config === null ? undefined : await runningShadow(admin);
  const catalogs = config === null ? null : await closureOf(config);
  if (typeof catalogs === 'string')
    terminal.line(terminal.paint('yellow', `the catalogs could not be read: ${catalogs}`));
  const closure = typeof catalogs === 'string' ? null : catalogs;
  const learned = config === null ? {} : await experience(config);
  const { plan } = await makePlanReport(
    {
      ...learned,
      data,
      closure,
      live: running?.live,
      ...(running === undefined ? {} : { sides: running.sides }),
      configured: config?.subsets ?? [],
      format: config === null ? null : formatText(config.shadow.format),
      staleAllowanceMs: config?.cutover.lagMsMax ?? STALE_ALLOWANCE_MS,
      // A log may be of a day long gone: the plan is then for the hours that followed it.
      nowMs: fromFiles ? undefined : nowMs,
      zone: verb.timezone ?? 'UTC',
      drainTimeoutMs: config?.cutover.drainTimeoutMs ?? DRAIN_TIMEOUT_MS,
      logBudgetBytes: config?.shadow.logBudgetBytes ?? 0,
      ...PLAN_DEFAULTS,
    },
    signal,
    ({ stage, done, total }) =>
      terminal.transient(
        total === undefined
          ? `${stage}: ${done} chunks`
          : `${stage}: ${bar(done / total, 20)} ${done} of ${total}`,
      ),
  );
  return plan;
}

/** The last verdicts on it, the oldest first; none where they can't be read. */
async function decisionsOn(config: ResolvedConfig, subset: string): Promise<readonly DecisionRecord[]> {
  try {
    const { decisions } = await new Decisions(config.destination).list(DECISIONS_LOOKED_AT);
    return decisions
      .filter((one) => one.kind !== 'tune' && (one.subset ?? WHOLE_DATABASE) === subset)
      .slice(0, DECISIONS_SHOWN)
      .toReversed();
  } catch {
    return [];
  }
}

async function* batchesOf(paths: readonly string[]): AsyncGenerator<SeriesBatch> {
  for (const path of paths) yield* readSeriesFile(path);
}

/** How long copies and switches took here; nothing where none was done, or nobody can be asked. */
async function experience(
  config: ResolvedConfig,
): Promise<Pick<PlanRequest, 'past' | 'sizes' | 'measuredSwitch'>> {
  try {
    const decisions = new Decisions(config.destination);
    const { operations } = await decisions.list(PAST_SWITCHES);
    const switches = measuredSwitch(operations.map(({ report }) => report));
    return {
      past: await decisions.pastCopies(),
      sizes: await pastSizes(config.destination),
      ...(switches === undefined ? {} : { measuredSwitch: switches }),
    };
  } catch {
    return {};
  }
}

function kept(config: ResolvedConfig | null, nowMs: number, days: number): Promise<PlanData> {
  if (config === null) throw new UnderstudyError('config-invalid', 'no configuration names a destination');
  return keptSeries(config, nowMs, days);
}

interface RunningShadow {
  readonly live: LiveShadow;
  readonly sides: ReadonlyMap<string, Side>;
}

/** undefined: no process is running, or it can't be asked. */
async function runningShadow(admin: () => AdminClient): Promise<RunningShadow | undefined> {
  try {
    const { shadow, autopilot, route, cutover } = await admin().status();
    const sides = new Map<string, Side>(
      (cutover?.subsets ?? []).map((each) => [each.subset, each.route.side]),
    );
    if (route !== null && sides.size === 0) sides.set(WHOLE_DATABASE, route.side);
    return { live: liveShadow(shadow, autopilot.applyChangesPerSecond), sides };
  } catch {
    return undefined;
  }
}

function subsetNamed(plan: PlanReport, name: string): SubsetReport {
  const all = [plan.whole, ...plan.subsets];
  const found =
    all.find(({ subset }) => subset === name) ??
    plan.subsets.find(({ tables }) => tables.some((table) => table === name || table.endsWith(`.${name}`)));
  if (found !== undefined) return found;
  throw new UnderstudyError('config-invalid', `there is no subset or table ${name}`, {
    advice: `One of: ${all
      .slice(0, 10)
      .map(({ subset }) => subset)
      .join(', ')}.`,
  });
}

async function writeSvg(path: string, plan: PlanReport): Promise<void> {
  try {
    await writeFile(path, planSvg(plan));
  } catch (error) {
    throw new UnderstudyError('config-invalid', `${path} can’t be written`, { cause: error });
  }
}
