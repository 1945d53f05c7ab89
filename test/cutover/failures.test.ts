/**
 * Something goes wrong at each step: the operation aborts with its reason, everything is as before, exactly one side is
 * writable, and the next attempt succeeds.
 */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { ErrorCode } from '../../src/core/errors.js';
import { UnderstudyError } from '../../src/core/errors.js';
import type { OperationKind, OperationReport, Side } from '../../src/core/ports.js';
import type { SessionBlocker } from '../../src/core/traffic-ports.js';
import { abortOperation } from '../../src/cutover/journal.js';
import type { StepPoint } from '../../src/cutover/settings.js';
import { Connections } from '../../src/cutover/session.js';
import { until } from '../support/servers.js';
import { Relay } from './relay.js';
import { readColumns, Stage } from './stage.js';

const BLOCKER: SessionBlocker = {
  sessionId: 7,
  user: 'shop',
  applicationName: 'till',
  reason: 'temporary-table',
  detail: 'pg_temp.basket',
};
const SETTINGS = { fenceTimeoutMs: 1_000, markTimeoutMs: 1_000, lagWaitMs: 30, prepareRoundsMax: 2 };

describe.each(['cutover', 'rollback'] as const)('%s', (kind) => {
  const from: Side = kind === 'cutover' ? 'source' : 'destination';
  const direction = kind === 'cutover' ? 'forward' : 'reverse';
  let stage: Stage;
  let epoch: number;

  beforeAll(async () => {
    stage = await Stage.open({ settings: SETTINGS });
    if (kind === 'rollback') await stage.operate('cutover');
  });
  afterAll(async () => {
    await stage[Symbol.asyncDispose]();
  });
  beforeEach(() => {
    epoch = stage.traffic.current.epoch;
    stage.traffic.calls.length = 0;
  });
  afterEach(async () => {
    stage.observe = undefined;
    stage.traffic.onHold = undefined;
    stage.traffic.failHold = undefined;
    stage.traffic.prepared = [];
    stage.catalogsHeld = undefined;
    Object.assign(stage.shadow, {
      phase: 'following',
      lagBytes: 0,
      fullMismatches: 0,
      recentMismatches: 0,
      failMark: undefined,
      onMark: undefined,
      onVerifyRecent: undefined,
    });
    for (const side of ['source', 'destination'] as const) {
      stage.shadow.built[side] = await readColumns(on(side));
    }
  });

  const on = (side: Side): Stage['pair']['onSource'] =>
    side === 'source' ? stage.pair.onSource : stage.pair.onDestination;

  async function aborts(code: ErrorCode, message: RegExp = /./): Promise<OperationReport> {
    const report = await stage.operate(kind);
    expect(report).toMatchObject({ outcome: 'aborted', epoch, reason: { code } });
    expect(report.reason?.message).toMatch(message);
    expect(stage.traffic.current).toEqual({ side: from, epoch });
    expect(stage.traffic.gate).toBe('open');
    expect(await stage.writableAtRest()).toEqual([from]);
    expect(await stage.journalState(report.id)).toBe('aborted');
    expect((await stage.coordinator.status()).last).toMatchObject({
      id: report.id,
      report: { outcome: 'aborted', reason: { code } },
    });
    return report;
  }

  test.each([
    ['is copying', 'shadow-not-ready', { phase: 'copying' }],
    ['doesn’t know its lag', 'shadow-not-ready', { lagBytes: null }],
    ['is far behind', 'shadow-not-ready', { lagBytes: 1e12 }],
    ['differs', 'verify-mismatch', { lastVerify: null, fullMismatches: 3 }],
  ] as const)('preflight: the shadow %s', async (_what, code, state) => {
    Object.assign(stage.shadow, state);
    await aborts(code);
    expect(stage.traffic.calls).not.toContain('hold');
    stage.shadow.lastVerify = null;
  });

  test('preflight: another proxy is alive', async () => {
    const { coordinator, traffic } = stage;
    await stage.startAnother();
    const other = stage.coordinator;
    Object.assign(stage, { coordinator, traffic });
    await aborts('other-proxy-alive');
    other.destroy();
  });

  // While the source is fenced, as before a rollback, a process that starts in the middle of it serves nobody.
  test.runIf(kind === 'cutover')('behind the fence: another proxy has come since preflight', async () => {
    const { coordinator, traffic } = stage;
    let other: typeof coordinator | undefined;
    stage.observe = async (point) => {
      if (point !== 'before:fence') return;
      // It finds no fence, and serves the side that leads.
      await stage.startAnother();
      other = stage.coordinator;
      Object.assign(stage, { coordinator, traffic });
    };
    await aborts('other-proxy-alive');
    expect(other).toBeDefined();
    other?.destroy();
  });

  test('preflight: the schema changed, on either side', async () => {
    for (const side of ['source', 'destination'] as const) {
      stage.shadow.built[side] = { ...stage.shadow.built[side], 'table lost': 'x' };
      await aborts('catalog-changed', new RegExp(`the ${side}’s schema .*table lost is gone`));
      stage.shadow.built[side] = await readColumns(on(side));
    }
  });

  test('preflight: a table has no barrier, or a raised one', async () => {
    await on(from).query('DROP TRIGGER understudy_barrier ON public.leaf_1');
    await aborts('preflight-blocked', /public\.leaf_1: has no barrier/);
    await stage.coordinator.installBarriers(await stage.shadow.tables());
  });

  test('preflight: somebody alters or vacuums a table', async () => {
    await on(from).query('BEGIN; LOCK TABLE public.plain IN SHARE UPDATE EXCLUSIVE MODE');
    const report = await stage.operate(kind);
    expect(report.reason).toMatchObject({ code: 'preflight-blocked' });
    expect(report.findings).toMatchObject([{ check: 'lock-held', side: from, object: 'public.plain' }]);
    await on(from).query('ROLLBACK');
    // A writer is no reason: the fence waits for it.
    await on(from).query(`BEGIN; INSERT INTO public.plain DEFAULT VALUES`);
    stage.traffic.failHold = new UnderstudyError('drain-timeout', 'enough seen');
    expect((await stage.operate(kind)).reason?.code).toBe('drain-timeout');
    await on(from).query('ROLLBACK');
  });

  test('preflight: sessions are pinned, refused or restless', async () => {
    const report = { sessions: 10, warm: 9, stale: 0 };
    const twice = (blockers: readonly SessionBlocker[], stale = 0): void => {
      stage.traffic.prepared = [1, 2].map(() => ({ ...report, stale, blockers }));
    };
    twice([BLOCKER]);
    const pinned = await aborts('session-pinned', /temporary-table/);
    expect(pinned.findings.map((finding) => finding.check)).toContain('session-temporary-table');
    twice([{ ...BLOCKER, reason: 'destination-refuses', detail: 'too many connections' }]);
    await aborts('warm-failed', /too many connections/);
    twice([], 9);
    await aborts('warm-failed', /9 of 10/);
    twice([{ ...BLOCKER, reason: 'in-transaction' }]);
    stage.traffic.failHold = new UnderstudyError('drain-timeout', 'busy');
    await aborts('drain-timeout');
  });

  test('hold: a transaction doesn’t end in time', async () => {
    stage.traffic.failHold = new UnderstudyError('drain-timeout', 'one transaction is still open');
    await aborts('drain-timeout');
    expect(stage.traffic.calls).toContain('discardWarm');
  });

  test('fence: a client that bypasses the proxy doesn’t let go of a table', async () => {
    stage.traffic.onHold = async () => {
      await on(from).query(`BEGIN; UPDATE public.plain SET note = 'x'`);
    };
    const running = stage.operate(kind);
    const report = await running;
    expect(report).toMatchObject({ outcome: 'aborted', reason: { code: 'fence-timeout' } });
    await on(from).query('ROLLBACK');
    expect(await stage.writableAtRest()).toEqual([from]);
  });

  test('DDL slipped in before the fence, and is named, however late the catalogs are read', async () => {
    stage.traffic.onHold = async () => {
      await on(from).query('ALTER TABLE public.parent ADD COLUMN slipped int');
      stage.catalogsHeld = new Promise((resolve) => {
        stage.shadow.onVerifyRecent = () => Promise.resolve(resolve());
      });
    };
    await aborts('catalog-changed', /table (public\.)?parent changed/);
    await on(from).query('ALTER TABLE public.parent DROP COLUMN slipped');
  });

  test('catch-up: the mark doesn’t arrive', async () => {
    stage.shadow.onMark = () => new Promise(() => undefined);
    await aborts('mark-timeout', new RegExp(direction));
  });

  test('catch-up: the shadow fails', async () => {
    stage.shadow.failMark = new UnderstudyError('apply-failed', 'a change could not be applied');
    await aborts('apply-failed');
  });

  test('verify: rows differ', async () => {
    stage.shadow.recentMismatches = 2;
    await aborts('verify-mismatch', /2 rows/);
  });

  test.each(['onHold', 'onMark', 'onVerifyRecent'] as const)(
    'an abort asked for during %s, or by the caller’s signal',
    async (moment) => {
      const at = moment === 'onHold' ? stage.traffic : stage.shadow;
      Object.assign(at, {
        [moment]: () => {
          expect(stage.coordinator.abort()).toBe(true);
          return Promise.resolve();
        },
      });
      await aborts('cancelled', /on request/);
      const controller = new AbortController();
      Object.assign(at, {
        [moment]: () => {
          controller.abort();
          return Promise.resolve();
        },
      });
      const report = await stage.operate(kind, controller.signal);
      expect(report).toMatchObject({ outcome: 'aborted', reason: { code: 'cancelled' } });
      expect(await stage.writableAtRest()).toEqual([from]);
    },
  );

  test.each(['journal', 'barrier', 'inspector', 'stage'] as const)(
    'the connection of the %s is cut behind the gate',
    async (purpose) => {
      stage.shadow.onMark = async () => {
        for (const side of ['source', 'destination'] as const) {
          const { rows } = await on(side).query<{ pid: string }>(
            `SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
              WHERE application_name = $1 AND datname = current_database()`,
            [`understudy ${kind} ${purpose}`],
          );
          const pids = rows.map(({ pid }) => pid);
          const left = 'SELECT FROM pg_stat_activity WHERE pid = ANY ($1)';
          await until(async () => (await on(side).query(left, [pids])).rowCount === 0);
        }
        // Gone on the server; the process hears of it in a turn of the loop that reads sockets.
        await new Promise((resolve) => setTimeout(resolve, 30));
      };
      const report = await stage.operate(kind);
      const writable = await stage.writable();
      if (purpose === 'barrier' || purpose === 'inspector') {
        // Their work may be done by then.
        expect(writable).toHaveLength(1);
      } else {
        expect(report).toMatchObject({ outcome: 'aborted', reason: { code: /unreachable/ as never } });
        expect(writable).toEqual([from]);
      }
      stage.shadow.onMark = undefined;
      if (report.outcome === 'done') await stage.operate(kind === 'cutover' ? 'rollback' : 'cutover');
    },
  );

  test('the journal says that somebody else aborted it: everything is undone, nothing committed', async () => {
    const connections = new Connections(stage.pair, 3000);
    stage.shadow.onVerifyRecent = async () => {
      const session = await connections.open('destination', 'other');
      const running = await stage.coordinator.status();
      const { rows } = await stage.pair.onDestination.query<{ attempt: string }>(
        'SELECT attempt FROM understudy.operation WHERE id = $1',
        [running.running?.id],
      );
      await abortOperation(
        session,
        { id: running.running?.id ?? '', attempt: rows[0]?.attempt ?? '', epoch },
        'by another process',
      );
    };
    await aborts('journal-conflict');
    connections.destroy();
  });

  test('afterwards it works, and a second one at the same time is refused', async () => {
    let second: Promise<OperationReport> | undefined;
    stage.traffic.onHold = () => {
      second = stage.operate(kind);
      second.catch(() => undefined);
      return Promise.resolve();
    };
    expect(await stage.operate(kind)).toMatchObject({ outcome: 'done' });
    await expect(second).rejects.toMatchObject({ code: 'busy' });
    const other = kind === 'cutover' ? 'rollback' : 'cutover';
    await expect(stage.operate(kind)).rejects.toMatchObject({
      code: kind === 'cutover' ? 'already-cut-over' : 'not-cut-over',
    });
    expect(await stage.operate(other)).toMatchObject({ outcome: 'done' });
  });
});

describe('losing a side', () => {
  const SHORT = { inDoubtTimeoutMs: 50 };
  let stage: Stage;
  let relays: Record<Side, Relay>;

  beforeAll(async () => {
    stage = await Stage.open();
    relays = {
      source: await Relay.open(stage.pair.source),
      destination: await Relay.open(stage.pair.destination),
    };
  });
  afterAll(async () => {
    await stage[Symbol.asyncDispose]();
    await relays.source[Symbol.asyncDispose]();
    await relays.destination[Symbol.asyncDispose]();
  });

  /** The side that `kind` starts from leads, both are reached through their relays, and `side` is lost at `point`. */
  async function arrange(kind: OperationKind, side: Side, point: StepPoint): Promise<void> {
    stage.observe = undefined;
    const leads = kind === 'cutover' ? 'source' : 'destination';
    if (stage.traffic.current.side !== leads) {
      await stage.operate(kind === 'cutover' ? 'rollback' : 'cutover');
    }
    await stage.restart({
      settings: SHORT,
      source: relays.source.endpoint,
      destination: relays.destination.endpoint,
      observe: (at) => {
        if (at === point) relays[side].cut();
      },
    });
  }

  test('the destination, before COMMIT was sent: undone without it, and the journal put right when it is back', async () => {
    await arrange('cutover', 'destination', 'after:verify');
    const report = await stage.operate('cutover');
    expect(report).toMatchObject({ outcome: 'aborted', reason: { code: 'destination-unreachable' } });
    expect(stage.traffic.gate).toBe('open');
    expect(await stage.writableAtRest()).toEqual(['source']);
    expect(await stage.journalState(report.id)).toBe('verifying');
    expect(await stage.coordinator.status()).toMatchObject({
      journal: 'unreachable',
      last: { id: report.id, state: 'aborted' },
    });
    stage.observe = undefined;
    relays.destination.restore();
    await until(async () => (await stage.journalState(report.id)) === 'aborted');
    expect(await stage.operate('cutover')).toMatchObject({ outcome: 'done' });
  });

  test('the destination, once a rollback has raised its guard: nothing opens before the journal took the abort', async () => {
    await arrange('rollback', 'destination', 'before:verify');
    const running = stage.operate('rollback');
    await until(() => stage.traffic.failedHeld.length > 0);
    expect(await stage.writable()).toEqual([]);
    relays.destination.restore();
    expect(await running).toMatchObject({
      outcome: 'aborted',
      reason: { code: 'destination-unreachable' },
    });
    expect(await stage.writableAtRest()).toEqual(['destination']);
  });

  test('the source, after a rollback’s commit: it goes forward once the source is back', async () => {
    await arrange('rollback', 'source', 'before:open');
    const running = stage.operate('rollback');
    await until(() => stage.traffic.failedHeld.length > 0);
    expect(await stage.writable()).toEqual([]);
    expect(stage.coordinator.abort()).toBe(false);
    relays.source.restore();
    expect(await running).toMatchObject({ outcome: 'done' });
    expect(await stage.writableAtRest()).toEqual(['source']);
  });

  test('the source, while its fence is to be lowered: the gate stays closed until that is done', async () => {
    await arrange('cutover', 'source', 'before:undo-fence');
    stage.shadow.recentMismatches = 1;
    const running = stage.operate('cutover');
    await until(() => stage.traffic.failedHeld.length > 0);
    expect(await stage.writable()).toEqual([]);
    expect(stage.traffic.gate).toBe('closed');
    expect(stage.traffic.failedHeld).not.toContain('08007');
    relays.source.restore();
    stage.shadow.recentMismatches = 0;
    expect(await running).toMatchObject({ outcome: 'aborted', reason: { code: 'verify-mismatch' } });
    expect(await stage.writableAtRest()).toEqual(['source']);
    expect(stage.traffic.gate).toBe('open');
  });
});

describe('at rest', () => {
  let stage: Stage;
  beforeAll(async () => {
    stage = await Stage.open();
  });
  afterAll(async () => {
    await stage[Symbol.asyncDispose]();
  });

  test('a dry run checks and warms, and leaves no trace', async () => {
    const rehearse = async (): Promise<OperationReport> =>
      await stage.coordinator.cutover({
        dryRun: true,
        signal: new AbortController().signal,
        onEvent: () => undefined,
      });
    expect(await rehearse()).toMatchObject({ outcome: 'dry-run', epoch: 0 });
    expect(stage.traffic.calls).toEqual(['prepare', 'discardWarm']);
    stage.shadow.lagBytes = null;
    expect(await rehearse()).toMatchObject({ outcome: 'dry-run', reason: { code: 'shadow-not-ready' } });
    stage.shadow.lagBytes = 0;
    expect((await stage.coordinator.status()).last).toBeNull();
    expect(await stage.writableAtRest()).toEqual(['source']);
  });

  test('the gate is never closed beyond its budget before the commit', async () => {
    await stage.restart({ settings: { holdBudgetMs: 80, markTimeoutMs: 60_000 } });
    stage.shadow.onMark = () => new Promise(() => undefined);
    expect(await stage.operate('cutover')).toMatchObject({
      outcome: 'aborted',
      reason: { code: 'limit-reached' },
    });
    stage.shadow.onMark = undefined;
    expect(await stage.writableAtRest()).toEqual(['source']);
  });

  test('a blocker found by inspection stops it, and is reported', async () => {
    const finding = {
      severity: 'blocker',
      check: 'wal-level',
      side: 'destination',
      object: 'wal_level',
      message: 'is replica',
      advice: 'Set it to logical.',
    } as const;
    await stage.restart({ findings: [finding] });
    stage.events.length = 0;
    const report = await stage.operate('cutover');
    expect(report).toMatchObject({
      outcome: 'aborted',
      reason: { code: 'preflight-blocked' },
      findings: [finding],
    });
    expect(stage.events.filter((event) => event.event === 'finding')).toHaveLength(1);
    expect(stage.events.at(-1)).toMatchObject({ event: 'report' });
  });
});
