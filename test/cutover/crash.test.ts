/**
 * The process dies at every point of a cutover and of a rollback; the next one settles it. After each: exactly one
 * writable side, the one that the journal and the recovered route name, and the next operation works.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { OperationKind, Side } from '../../src/core/ports.js';
import type { StepPoint } from '../../src/cutover/settings.js';
import { StoppedDead } from '../../src/cutover/runner.js';
import { Stage } from './stage.js';

/**
 * Died before the journal acknowledged the COMMIT: undone. Where nothing lies between the end of one step and the
 * beginning of the next, one of the two points is enough.
 */
const UNDONE: readonly StepPoint[] = [
  'before:preflight',
  'before:prepare',
  'after:prepare',
  'before:hold',
  'after:hold',
  'before:fence',
  'after:fence',
  'before:catch-up',
  'after:catch-up',
  'before:verify',
  'before:commit',
  'before:send-commit',
];
/** Died after it: completed. */
const COMPLETED: readonly StepPoint[] = [
  'after:send-commit',
  'before:open',
  'after:open',
  'before:switch',
  'after:switch',
  'before:release',
  'before:finish',
];
/** Died while undoing something that had failed. */
const UNDOING: readonly StepPoint[] = [
  'before:journal-abort',
  'before:undo-fence',
  'before:undo-hold',
  'after:undo-hold',
];

/** No limit is what these tests are about: on a busy machine the server itself would end what was stopped. */
const PATIENT = {
  drainTimeoutMs: 60_000,
  fenceTimeoutMs: 60_000,
  markTimeoutMs: 60_000,
  holdBudgetMs: 120_000,
  commitAnswerTimeoutMs: 60_000,
  connectTimeoutMs: 60_000,
};

let stage: Stage;

beforeAll(async () => {
  stage = await Stage.open({ settings: PATIENT });
});
afterAll(async () => {
  await stage[Symbol.asyncDispose]();
});

function sidesOf(kind: OperationKind): { readonly from: Side; readonly to: Side } {
  return kind === 'cutover' ? { from: 'source', to: 'destination' } : { from: 'destination', to: 'source' };
}

async function bring(side: Side): Promise<void> {
  stage.observe = undefined;
  if (stage.traffic.current.side === side) return;
  const report = await stage.operate(side === 'destination' ? 'cutover' : 'rollback');
  expect(report).toMatchObject({ outcome: 'done' });
}

async function dieAt(point: StepPoint, operation: OperationKind): Promise<{ id: string; epoch: number }> {
  const { epoch } = stage.traffic.current;
  stage.observe = (at) => {
    if (at === point) throw new Error('killed');
  };
  await expect(stage.operate(operation)).rejects.toBeInstanceOf(StoppedDead);
  const { last } = await stage.coordinator.status();
  expect(last?.kind).toBe(operation);
  return { id: last?.id ?? '', epoch };
}

async function expectLeads(side: Side, epoch: number, atRest = true): Promise<void> {
  expect(stage.recovery?.route).toEqual({ side, epoch });
  expect(await stage.writable(undefined, atRest)).toEqual([side]);
}

/** Each ends where the other begins: no operation is needed between them. */
const BOTH = ['cutover', 'rollback'] as const satisfies readonly OperationKind[];

test.each(COMPLETED)('a cutover, and a rollback, killed at %s: completed', async (point) => {
  await bring('source');
  for (const kind of BOTH) {
    const { id, epoch } = await dieAt(point, kind);
    expect((await stage.writable()).length).toBeLessThanOrEqual(1);
    expect(await stage.restart()).toMatchObject({ action: 'completed', operation: { id, kind } });
    await expectLeads(sidesOf(kind).to, epoch + 1);
    expect(await stage.journalState(id)).toBe('done');
  }
});

test('a cutover, and a rollback, killed after its end was journaled: nothing to do', async () => {
  await bring('source');
  for (const kind of BOTH) {
    const { epoch } = await dieAt('after:finish', kind);
    expect(await stage.restart()).toMatchObject({ action: 'none' });
    await expectLeads(sidesOf(kind).to, epoch + 1);
  }
});

describe.each(BOTH)('%s', (kind) => {
  const { from, to } = sidesOf(kind);

  test.each(UNDONE)('killed at %s: undone', async (point) => {
    await bring(from);
    const { id, epoch } = await dieAt(point, kind);
    expect((await stage.writable()).length).toBeLessThanOrEqual(1);
    expect(await stage.restart()).toMatchObject({ action: 'aborted', operation: { id, kind } });
    await expectLeads(from, epoch);
    expect(await stage.journalState(id)).toBe('aborted');
    expect((await stage.coordinator.status()).last).toMatchObject({
      id,
      state: 'aborted',
      reason: /undone/ as never,
    });
  });

  test.each(UNDOING)('killed at %s, while a failure is undone: undone', async (point) => {
    await bring(from);
    stage.shadow.recentMismatches = 1;
    const { id, epoch } = await dieAt(point, kind);
    stage.shadow.recentMismatches = 0;
    expect((await stage.writable()).length).toBeLessThanOrEqual(1);
    await stage.restart();
    await expectLeads(from, epoch);
    expect(await stage.journalState(id)).toBe('aborted');
  });

  test('killed again and again while recovering, it still comes right', async () => {
    await bring(from);
    const { epoch } = await dieAt('after:verify', kind);
    for (let i = 0; i < 5; i++) {
      stage.coordinator.destroy();
      const doomed = stage.startAnother();
      await new Promise((resolve) => setTimeout(resolve, i * 4));
      stage.coordinator.destroy();
      await doomed.catch(() => undefined);
      expect((await stage.writable()).length).toBeLessThanOrEqual(1);
    }
    await stage.restart();
    await expectLeads(from, epoch);
  });

  test('a process stopped just before COMMIT wakes after its successor has undone it: its commit fails', async () => {
    await bring(from);
    let wake: () => void = () => undefined;
    let stopped: () => void = () => undefined;
    const atCommit = new Promise<void>((resolve) => (stopped = resolve));
    stage.observe = async (point) => {
      if (point !== 'before:commit') return;
      stopped();
      await new Promise<void>((resolve) => (wake = resolve));
    };
    const { epoch } = stage.traffic.current;
    const sleeping = stage.operate(kind);
    await atCommit;
    const sleeper = stage.coordinator;
    const sleepersTraffic = stage.traffic;
    const sleepersProcess = stage.process;
    sleepersProcess.stopped = true;
    // Stopped as a whole: its registration is gone, its other connections are still open.
    await stage.pair.onDestination.query(
      `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'understudy proxy' AND datname = current_database()`,
    );
    await stage.startAnother();
    // The sleeper’s transaction holds the other side’s tables.
    await expectLeads(from, epoch, false);
    sleepersProcess.stopped = false;
    wake();
    expect(await sleeping).toMatchObject({ outcome: 'aborted', reason: { code: 'journal-conflict' } });
    expect(sleepersTraffic.current.side).toBe(from);
    expect(await stage.writableAtRest()).toEqual([from]);
    sleeper.destroy();
    await stage.restart();
    await bring(to);
    expect(await stage.writableAtRest()).toEqual([to]);
  });
});
