/** The journal fails while a cutover is under way: it is undone all the same, and the next one works. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { until } from '../support/servers.js';
import { Stage } from './stage.js';

let stage: Stage;

beforeAll(async () => {
  stage = await Stage.open({
    settings: { fenceTimeoutMs: 1_000, markTimeoutMs: 1_000, lagWaitMs: 30, prepareRoundsMax: 2 },
  });
  await stage.coordinator.ensureJournal();
  await stage.pair.onDestination.query(`
    CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF NEW.state = ANY (TG_ARGV) THEN RAISE EXCEPTION USING ERRCODE = '53100', MESSAGE = 'could not extend file'; END IF;
      RETURN NEW;
    END $$`);
});
afterAll(async () => {
  await stage[Symbol.asyncDispose]();
});

async function withRefused(states: readonly string[], act: () => Promise<void>): Promise<void> {
  const list = states.map((state) => `'${state}'`).join(', ');
  await stage.pair.onDestination.query(
    `CREATE TRIGGER refuse BEFORE UPDATE ON understudy.operation FOR EACH ROW EXECUTE FUNCTION public.refuse(${list})`,
  );
  try {
    await act();
  } finally {
    await stage.pair.onDestination.query('DROP TRIGGER refuse ON understudy.operation');
  }
}

test.each([
  ['one state can’t be written down', ['catching-up']],
  ['nor can the abort, as on a full disk', ['catching-up', 'aborted']],
])('%s', async (_what, states) => {
  let id = '';
  await withRefused(states, async () => {
    const report = await stage.operate('cutover');
    ({ id } = report);
    expect(report).toMatchObject({ outcome: 'aborted', epoch: 0 });
    expect(stage.traffic.gate).toBe('open');
    expect(await stage.writableAtRest()).toEqual(['source']);
  });
  // By itself: nothing else has to begin, and no connection has to be lost, for the journal to be told.
  await until(async () => (await stage.journalState(id)) === 'aborted', {
    what: 'the abort to be journaled',
  });
  expect((await stage.coordinator.status()).last).toMatchObject({ id, state: 'aborted' });
});

test('and a cutover works', async () => {
  expect(await stage.operate('cutover')).toMatchObject({ outcome: 'done', epoch: 1 });
  expect(await stage.writableAtRest()).toEqual(['destination']);
});
