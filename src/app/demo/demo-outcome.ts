/** What a run of the demo measured: the JSON of `--json`, and the verdict that becomes the exit code. */
import type { OperationReport, VerifyReport } from '../../core/ports.js';
import type { AuditReport } from './auditor.js';
import { round } from './latency.js';
import type { LoadResult, SessionCheck, WindowFigures } from './load.js';

export interface SwitchOutcome {
  readonly report: OperationReport;
  /** Latencies of all statements of all clients from just before the switch to just after it. */
  readonly window: WindowFigures;
  /** What every session answered right after it. */
  readonly sessions: SessionCheck;
}

export interface DemoMeasurements {
  readonly seconds: number;
  readonly rowsLoaded: number;
  readonly copy: { readonly rows: number; readonly seconds: number };
  readonly switches: readonly SwitchOutcome[];
  readonly load: LoadResult;
  readonly audit: AuditReport;
  readonly verify: VerifyReport;
}

/** The object printed as the last line under `--json`. Milliseconds unless the name says otherwise. */
export interface DemoJson {
  readonly ok: boolean;
  readonly seconds: number;
  readonly copy: { readonly rows: number; readonly seconds: number };
  readonly switches: readonly {
    readonly direction: 'forward' | 'back';
    readonly stallMs: { readonly p50: number; readonly p99: number; readonly max: number };
    readonly held: number;
    readonly steps: Readonly<Record<string, number>>;
    readonly clientMs: { readonly p50: number; readonly p99: number; readonly max: number };
    readonly versions: Readonly<Record<string, number>>;
  }[];
  readonly statements: { readonly total: number; readonly failed: number };
  readonly transactions: { readonly total: number; readonly perSecond: number };
  readonly notifications: { readonly sent: number; readonly missing: number; readonly repeated: number };
  readonly sessions: { readonly connections: number; readonly faults: number };
  readonly audit: {
    readonly acknowledged: number;
    readonly found: number;
    readonly lost: number;
    readonly duplicated: number;
    readonly unanswered: number;
    readonly faults: readonly string[];
  };
  readonly verify: { readonly tables: number; readonly rows: number; readonly mismatches: number };
  /** What went wrong, one line each; empty where nothing did. */
  readonly faults: readonly string[];
}

/** Everything that must be nothing, as lines for a person. */
export function faultsOf(measured: DemoMeasurements): readonly string[] {
  const { load, audit, verify, switches } = measured;
  const { failed, failures, notifications } = load.snapshot;
  const faults: string[] = [];
  if (failed > 0) faults.push(`${failed} statements failed: ${failures.join('; ')}`);
  if (notifications.missing > 0) faults.push(`${notifications.missing} notifications never arrived`);
  if (notifications.repeated > 0) faults.push(`${notifications.repeated} notifications arrived twice`);
  for (const { report, sessions } of switches) {
    if (report.outcome !== 'done') {
      faults.push(
        `${report.kind} ${report.outcome}: ${report.reason?.code ?? ''} ${report.reason?.message ?? ''}`,
      );
    }
    if (report.closed > 0) faults.push(`${report.kind} closed ${report.closed} connections`);
    faults.push(...sessions.faults);
  }
  faults.push(...audit.faults);
  if (!audit.clean && audit.faults.length === 0) faults.push('the audit is not clean');
  if (verify.mismatches > 0) faults.push(`verify found ${verify.mismatches} differing rows`);
  return faults;
}

export function demoJson(measured: DemoMeasurements): DemoJson {
  const { load, audit, verify } = measured;
  const { snapshot } = load;
  const faults = faultsOf(measured);
  return {
    ok: faults.length === 0,
    seconds: toTenths(measured.seconds),
    copy: { rows: measured.copy.rows, seconds: toTenths(measured.copy.seconds) },
    switches: measured.switches.map(({ report, window, sessions }) => ({
      direction: report.kind === 'cutover' ? 'forward' : 'back',
      stallMs: {
        p50: round(report.stall.p50),
        p99: round(report.stall.p99),
        max: round(report.stall.max),
      },
      held: report.stall.held,
      steps: Object.fromEntries(Object.entries(report.steps).map(([step, ms]) => [step, round(ms)])),
      clientMs: { p50: window.p50, p99: window.p99, max: window.max },
      versions: sessions.versions,
    })),
    statements: { total: snapshot.statements, failed: snapshot.failed },
    transactions: {
      total: snapshot.transactions,
      perSecond: Math.round(snapshot.transactions / snapshot.seconds),
    },
    notifications: {
      sent: snapshot.notifications.sent,
      missing: snapshot.notifications.missing,
      repeated: snapshot.notifications.repeated,
    },
    sessions: {
      connections: snapshot.connections,
      faults: measured.switches.reduce((sum, { sessions }) => sum + sessions.faults.length, 0),
    },
    audit: {
      acknowledged: audit.acknowledged,
      found: audit.found,
      lost: audit.lost,
      duplicated: audit.duplicated,
      unanswered: audit.unanswered.present + audit.unanswered.absent,
      faults: audit.faults,
    },
    verify: { tables: verify.tables, rows: verify.rows, mismatches: verify.mismatches },
    faults,
  };
}

function toTenths(value: number): number {
  return Math.round(value * 10) / 10;
}
