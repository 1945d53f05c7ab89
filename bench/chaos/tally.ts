/** What a run comes to, and many of them together. */
import type { Finding } from './checks.js';
import type { RunReport } from './play.js';

/** From that part on, of five seconds' CPU time that a run could have used, the machine had no time for it. */
export const STARVED_SHARE = 2 / 3;

/** Something was awaited and did not come within its bound: all that a machine without time can bring about. */
const LATE: ReadonlySet<string> = new Set([
  'shadow-does-not-follow',
  'stuck',
  'operation-stuck',
  'does-not-settle',
  'refused-for-nothing',
  'crossing-late',
  'not-served',
  'does-not-meet',
  'not-removed',
  'run-too-long',
]);

/**
 * ok: nothing was found. starved: nothing but that something took too long, and the machine was short of time for it, so that
 * the run says nothing; it is to be played again. Whatever else is found counts, however busy the machine was.
 */
export type Verdict = 'ok' | 'found' | 'starved';

export function verdictOf(findings: readonly Finding[], waitedShare: number | null): Verdict {
  if (findings.length === 0) return 'ok';
  const late = findings.every(({ problem }) => LATE.has(problem));
  return late && waitedShare !== null && waitedShare >= STARVED_SHARE ? 'starved' : 'found';
}

export interface Tally {
  readonly runs: number;
  readonly acts: number;
  readonly statements: number;
  readonly outcomes: Readonly<Record<string, number>>;
  /** Acts in which the fault was made, by fault. */
  readonly faults: Readonly<Record<string, number>>;
  readonly findings: readonly { readonly seed: number; readonly problem: string; readonly detail: string }[];
  /** Seeds of the runs that are not judged. */
  readonly starved: readonly number[];
  readonly stallMaxMs: number;
}

export function tallyOf(reports: readonly RunReport[]): Tally {
  const outcomes: Record<string, number> = {};
  const faults: Record<string, number> = {};
  const acts = reports.flatMap((report) => report.acts);
  for (const act of acts) {
    const key = `${act.kind} ${act.outcome}`;
    outcomes[key] = (outcomes[key] ?? 0) + 1;
    for (const name of act.faults) if (!act.missed.includes(name)) faults[name] = (faults[name] ?? 0) + 1;
  }
  return {
    runs: reports.length,
    acts: acts.length,
    statements: reports.reduce((sum, { statements }) => sum + statements, 0),
    outcomes,
    faults,
    findings: reports
      .filter(({ verdict }) => verdict === 'found')
      .flatMap(({ seed, findings }) => findings.map(({ problem, detail }) => ({ seed, problem, detail }))),
    starved: reports.filter(({ verdict }) => verdict === 'starved').map(({ seed }) => seed),
    stallMaxMs: Math.max(0, ...acts.map(({ stallMaxMs }) => stallMaxMs)),
  };
}

const MARKS: Readonly<Record<Verdict, string>> = { ok: 'ok  ', found: 'FIND', starved: 'STRV' };

/** One line for people. */
export function lineOf(report: RunReport): string {
  const acts = report.acts.map(
    ({ kind, subset, outcome, missed }) =>
      `${kind} ${subset === undefined ? '' : `of ${subset} `}${outcome}${missed.length > 0 ? ` [${missed.join(', ')} came too late]` : ''}`,
  );
  const waited =
    report.waitedShare === null ? '' : `  waited for a CPU ${Math.round(report.waitedShare * 100)} %`;
  return `${MARKS[report.verdict]} seed ${report.seed}  ${report.seconds.toFixed(1)} s  ${report.statements} statements${waited}  ${report.plan} → ${acts.join(', ')}`;
}
