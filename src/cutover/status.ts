/** What the two sides say of themselves, for `status`: asked over connections of its own, and never waited for long. */
import type { OperationReport, ShadowControl, Side, SubsetId } from '../core/ports.js';
import { asUnderstudyError } from '../core/errors.js';
import type { Log } from '../core/log.js';
import { barrierState, readBarrier } from './barrier.js';
import { readLastOperation, readRoute, type JournalOperation, type JournalRoute } from './journal.js';
import { subsetsOf } from './operation.js';
import type { OperationRunner } from './runner.js';
import type { Connections, Session } from './session.js';
import type { BarrierState, CutoverStatus, OperationRecord } from './settings.js';

export interface SidesStatus {
  readonly barriers: Readonly<Record<Side, BarrierState>>;
  readonly journal: CutoverStatus['journal'];
  readonly route: JournalRoute | null;
  readonly last: OperationRecord | null;
}

export class StatusReader {
  readonly #connections: Connections;
  readonly #log: Log;
  readonly #answerTimeoutMs: number;
  readonly #sessions = new Map<Side, Session>();

  constructor(connections: Connections, log: Log, answerTimeoutMs: number) {
    this.#connections = connections;
    this.#log = log;
    this.#answerTimeoutMs = answerTimeoutMs;
  }

  /** Never throws: a side that can't be asked is `unknown`, a journal that can't be read `unreachable`. */
  async read(subset: SubsetId): Promise<SidesStatus> {
    const [source, destination] = await Promise.all([
      this.#ask('source', async (session) => barrierState(await readBarrier(session, subset))),
      this.#ask('destination', async (session) => {
        const barrier = barrierState(await readBarrier(session, subset));
        const route = await readRoute(session, subset);
        const last = route === null ? null : await readLastOperation(session, subset);
        return { barrier, route, last };
      }),
    ]);
    const absent = destination !== null && destination.route === null;
    return {
      barriers: { source: source ?? 'unknown', destination: destination?.barrier ?? 'unknown' },
      journal: destination === null ? 'unreachable' : absent ? 'absent' : 'reachable',
      route: destination?.route ?? null,
      last: recordOf(destination?.last ?? null),
    };
  }

  async #ask<T>(side: Side, act: (session: Session) => Promise<T>): Promise<T | null> {
    try {
      return await act(await this.#session(side));
    } catch (error) {
      const { code, message } = asUnderstudyError(error, 'internal', 'status');
      this.#log.debug({ side, code, reason: message }, 'status: a side could not be asked');
      return null;
    }
  }

  async #session(side: Side): Promise<Session> {
    const open = this.#sessions.get(side);
    if (open !== undefined && !open.dead) return open;
    const session = await this.#connections.open(side, 'status', { answerTimeoutMs: this.#answerTimeoutMs });
    this.#sessions.set(side, session);
    return session;
  }
}

/** Without what only the compare-and-swaps need. */
function recordOf(operation: JournalOperation | null): OperationRecord | null {
  if (operation === null) return null;
  const { id, subset, kind, state, startedAt, finishedAt, reason, report } = operation;
  return { id, subset, kind, state, startedAt, finishedAt, reason, report };
}

/** Whether the way back would lose anything, while the destination leads. */
export async function readRollbackStatus(shadow: ShadowControl): Promise<CutoverStatus['rollback']> {
  try {
    const { streams } = await shadow.status();
    const reverse = streams.find((stream) => stream.direction === 'reverse');
    if (reverse?.connected === true && reverse.authoritative) return { possible: true, lossless: true };
    const reason = 'the reverse stream does not carry changes: what the source lacks would be lost';
    return { possible: reverse !== undefined, lossless: false, reason };
  } catch (error) {
    const { message } = asUnderstudyError(error, 'internal', 'shadow');
    return { possible: false, lossless: false, reason: `the shadow can’t be asked: ${message}` };
  }
}

export function runningStatus({
  operation,
  state,
  step,
  startedAt,
}: OperationRunner): NonNullable<CutoverStatus['running']> {
  return {
    id: operation.key.id,
    kind: operation.kind,
    ...(operation.members.length > 1 ? { subsets: subsetsOf(operation) } : {}),
    state,
    step,
    startedAt,
  };
}

/** What the journal would hold of an operation of this process. */
export function recordOfReport(report: OperationReport): OperationRecord {
  return {
    id: report.id,
    subset: report.subset,
    kind: report.kind,
    state: report.outcome === 'done' ? 'done' : 'aborted',
    startedAt: report.startedAt,
    finishedAt: null,
    reason: report.reason === undefined ? null : `${report.reason.code}: ${report.reason.message}`,
    report,
  };
}
