/** COMMIT was sent and no answer came. Only the journal tells, and it tells the truth. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { OperationKind, OperationReport, Side } from '../../src/core/ports.js';
import type { CutoverSettings } from '../../src/cutover/settings.js';
import { until } from '../support/servers.js';
import { Relay, type Loss } from './relay.js';
import { Stage } from './stage.js';

const SETTINGS = { commitAnswerTimeoutMs: 500, inDoubtTimeoutMs: 60 };

let stage: Stage;
let relay: Relay;

beforeAll(async () => {
  stage = await Stage.open({ settings: SETTINGS });
  relay = await Relay.open(stage.pair.destination);
});
afterAll(async () => {
  await stage[Symbol.asyncDispose]();
  await relay[Symbol.asyncDispose]();
});

/** The side that `kind` starts from leads, and the next COMMIT of an operation is lost between us and the destination. */
async function arrange(
  kind: OperationKind,
  loss: Loss,
  thenDown: boolean,
  settings: Partial<CutoverSettings> = SETTINGS,
): Promise<void> {
  await stage.restart({ settings });
  const leads = kind === 'cutover' ? 'source' : 'destination';
  if (stage.traffic.current.side !== leads) {
    const report = await stage.operate(kind === 'cutover' ? 'rollback' : 'cutover');
    expect(report.reason).toBeUndefined();
  }
  await stage.restart({
    settings,
    destination: relay.endpoint,
    observe: (point) => {
      if (point === 'before:send-commit') relay.lose(loss, thenDown);
    },
  });
}

describe.each(['cutover', 'rollback'] as const)('%s', (kind) => {
  const from: Side = kind === 'cutover' ? 'source' : 'destination';
  const to: Side = kind === 'cutover' ? 'destination' : 'source';

  test('the answer is lost and the commit happened: it goes forward', async () => {
    await arrange(kind, 'answer', false);
    const lost = relay.lost;
    expect(await stage.operate(kind)).toMatchObject({ outcome: 'done' });
    expect(relay.lost).toBe(lost + 1);
    expect(stage.traffic.current.side).toBe(to);
    expect(await stage.writableAtRest()).toEqual([to]);
  });

  test('the COMMIT is lost: it is undone', async () => {
    await arrange(kind, 'commit', false);
    const { epoch } = stage.traffic.current;
    const report = await stage.operate(kind);
    expect(report).toMatchObject({ outcome: 'aborted', epoch, reason: { code: 'in-doubt' } });
    expect(stage.traffic.current.side).toBe(from);
    expect(stage.traffic.gate).toBe('open');
    expect(await stage.writableAtRest()).toEqual([from]);
  });

  test.each(['answer', 'commit'] as const)(
    'the %s is lost and the journal is gone for a while: the barrier stands, held statements fail with 08007',
    async (loss) => {
      await arrange(kind, loss, true);
      const running = stage.operate(kind);
      await until(() => stage.traffic.failedHeld.length >= 2, { what: 'held statements to fail' });
      expect(stage.traffic.gate).toBe('closed');
      expect(new Set(stage.traffic.failedHeld)).toEqual(new Set(['08007']));
      expect((await stage.coordinator.status()).running).toMatchObject({ state: 'in-doubt' });
      // Asking to abort changes nothing: only the journal leaves this state.
      expect(stage.coordinator.abort()).toBe(false);
      const writable = await stage.writable();
      expect(writable).toEqual(loss === 'answer' && kind === 'cutover' ? ['destination'] : []);
      relay.restore();
      const report: OperationReport = await running;
      expect(report.outcome).toBe(loss === 'answer' ? 'done' : 'aborted');
      expect(await stage.writableAtRest()).toEqual([loss === 'answer' ? to : from]);
      expect(stage.traffic.gate).toBe('open');
    },
  );

  test('the process ends while in doubt: nothing is undone, the next one settles it', async () => {
    await arrange(kind, 'answer', true);
    const running = stage.operate(kind).catch((error: Error) => error.name);
    await until(() => stage.traffic.failedHeld.length > 0);
    stage.coordinator.destroy();
    expect(await running).toBe('StoppedDead');
    relay.restore();
    expect(await stage.startAnother()).toMatchObject({ action: 'completed', route: { side: to } });
    expect(await stage.writableAtRest()).toEqual([to]);
  });
});

test('a COMMIT lost in silence: the server ends the transaction itself, and only then it is undone', async () => {
  await arrange('cutover', 'silence', false, { ...SETTINGS, holdBudgetMs: 3_000 });
  expect(await stage.operate('cutover')).toMatchObject({ outcome: 'aborted', reason: { code: 'in-doubt' } });
  expect(stage.traffic.failedHeld).toContain('08007');
  expect(await stage.writableAtRest()).toEqual(['source']);
});
