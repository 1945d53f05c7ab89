/** Who leads, after anything that can have happened: servers that are gone, hands that meddled, a life elsewhere. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { Side } from '../../src/core/ports.js';
import type { StepPoint } from '../../src/cutover/settings.js';
import { TRUNCATE_TRIGGER } from '../../src/cutover/barrier-names.js';
import { databasePair, until } from '../support/servers.js';
import { Relay } from './relay.js';
import { Stage, TABLES, TABLES_SQL } from './stage.js';

const LOWER_BY_HAND = `DO $$ DECLARE t record; BEGIN
  FOR t IN SELECT tgrelid::regclass AS tab, tgname FROM pg_trigger WHERE tgname LIKE 'understudy\\_barrier%' LOOP
    EXECUTE format('ALTER TABLE %s DISABLE TRIGGER %I', t.tab, t.tgname);
  END LOOP; END $$`;

let stage: Stage;
let relays: Record<Side, Relay>;

beforeAll(async () => {
  stage = await Stage.open({});
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
beforeEach(() => {
  relays.source.restore();
  relays.destination.restore();
});

async function bring(side: Side): Promise<void> {
  await stage.restart({
    source: relays.source.endpoint,
    destination: relays.destination.endpoint,
  });
  if (stage.traffic.current.side === side) return;
  const report = await stage.operate(side === 'destination' ? 'cutover' : 'rollback');
  expect(report.reason).toBeUndefined();
}

async function recoverOnly(): ReturnType<Stage['coordinator']['recover']> {
  return await stage.coordinator.recover(new AbortController().signal);
}

test('no fence: the source leads, and needs no destination to be served', async () => {
  await bring('source');
  relays.destination.cut();
  expect(await recoverOnly()).toMatchObject({ route: { side: 'source' }, action: 'unreachable' });
});

test('an operation that was found undone can raise no fence any more, however late its call comes', async () => {
  await bring('source');
  await stage.pair.onSource.query(`UPDATE understudy.epoch SET armed = 'undone by a process that died then'`);
  expect(await recoverOnly()).toMatchObject({ route: { side: 'source' }, action: 'none' });
  const { rows } = await stage.pair.onSource.query('SELECT armed FROM understudy.epoch');
  expect(rows).toEqual([{ armed: null }]);
});

test('a fence: the journal must be read, and until then nobody leads', async () => {
  await bring('destination');
  relays.destination.cut();
  await expect(recoverOnly()).rejects.toMatchObject({ code: 'route-unknown', retryable: true });
  relays.destination.restore();
  expect(await recoverOnly()).toMatchObject({ route: { side: 'destination' }, action: 'none' });
});

test('the old server is switched off: the journal alone says that the destination leads', async () => {
  await bring('destination');
  relays.source.cut();
  expect(await recoverOnly()).toMatchObject({ route: { side: 'destination' }, action: 'none' });
  relays.destination.cut();
  await expect(recoverOnly()).rejects.toMatchObject({ code: 'source-unreachable' });
  relays.source.restore();
  relays.destination.restore();
  await bring('source');
  relays.source.cut();
  await expect(recoverOnly()).rejects.toMatchObject({ code: 'source-unreachable' });
});

test('a rollback that died before its commit, with the source switched off: undone', async () => {
  await bring('destination');
  stage.observe = (point) => {
    if (point === 'after:fence') throw new Error('killed');
  };
  await stage.operate('rollback').catch(() => undefined);
  expect(await stage.writable()).toEqual([]);
  stage.observe = undefined;
  stage.coordinator.destroy();
  relays.source.cut();
  await stage.startAnother({ source: relays.source.endpoint });
  expect(stage.recovery).toMatchObject({ route: { side: 'destination' }, action: 'aborted' });
  expect(await stage.writableAtRest()).toEqual(['destination']);
});

test('the fence was lowered by hand while the destination leads: nobody is served before somebody decides', async () => {
  await bring('destination');
  await stage.pair.onSource.query(LOWER_BY_HAND);
  await expect(recoverOnly()).rejects.toMatchObject({ code: 'journal-conflict' });
  await stage.pair.onSource.query(LOWER_BY_HAND.replace('DISABLE', 'ENABLE ALWAYS'));
  expect(await recoverOnly()).toMatchObject({ route: { side: 'destination' } });
});

test('the fence stands on some tables only while the destination leads: it is raised on all', async () => {
  await bring('destination');
  await stage.pair.onSource.query(`ALTER TABLE ONLY public.leaf_1 DISABLE TRIGGER ${TRUNCATE_TRIGGER}`);
  expect((await stage.coordinator.status()).barriers.source).toBe('partial');
  await recoverOnly();
  expect((await stage.coordinator.status()).barriers).toEqual({ source: 'raised', destination: 'lowered' });
});

test('the guard was lowered by hand while the source leads: it is raised', async () => {
  await bring('source');
  await stage.pair.onDestination.query(LOWER_BY_HAND);
  await recoverOnly();
  expect(await stage.writableAtRest()).toEqual(['source']);
});

test('the runbook’s way out of a fence left standing is understood afterwards', async () => {
  await bring('source');
  stage.observe = (point) => {
    if (point === 'after:fence') throw new Error('killed');
  };
  await stage.operate('cutover').catch(() => undefined);
  stage.coordinator.destroy();
  await stage.pair.onDestination.query(
    `UPDATE understudy.operation SET state = 'aborted'
      WHERE state NOT IN ('committed', 'switching', 'releasing', 'done', 'aborted', 'failed')`,
  );
  await stage.pair.onSource.query(LOWER_BY_HAND);
  await bring('destination');
  expect(await stage.writableAtRest()).toEqual(['destination']);
});

test('an operation of a live process is left alone, and ends where another has come', async () => {
  await bring('source');
  const { coordinator: first, traffic } = stage;
  const seen: unknown[] = [];
  const observe = async (point: StepPoint): Promise<void> => {
    if (point === 'before:fence') {
      // Another process starts in the middle of it: it may look, and must not touch.
      seen.push(await stage.startAnother({}));
      stage.observe = observe;
    }
    if (point === 'after:fence') seen.push(await recoverOnly().catch((error: unknown) => error));
  };
  stage.observe = observe;
  // Nor may the operation go on: the clients of the other would stay where they are.
  expect(await stage.operate('cutover')).toMatchObject({
    outcome: 'aborted',
    reason: { code: 'other-proxy-alive' },
  });
  expect(seen).toMatchObject([{ route: { side: 'source' }, action: 'none' }, { code: 'route-unknown' }]);
  expect(traffic.current.side).toBe('source');
  expect(await recoverOnly()).toMatchObject({ route: { side: 'source' }, action: 'none' });
  first.destroy();
});

test('a rollback killed right after its commit carries the sequences before it opens the source', async () => {
  await bring('destination');
  await stage.pair.onDestination.query(`SELECT setval(pg_get_serial_sequence('public.plain', 'id'), 5000)`);
  stage.observe = (point) => {
    if (point === 'after:commit') throw new Error('killed');
  };
  await stage.operate('rollback').catch(() => undefined);
  // As if the source's server had stopped before what the staged transaction set was flushed.
  stage.coordinator.destroy();
  await until(async () => {
    const set = await stage.pair.onSource
      .query(`SELECT setval(pg_get_serial_sequence('public.plain', 'id'), 1)`)
      .catch(() => null);
    return set !== null;
  });
  await bring('source');
  const next = await stage.pair.onSource.query<{ id: string }>(
    'INSERT INTO public.plain DEFAULT VALUES RETURNING id',
  );
  expect(Number(next.rows[0]?.id)).toBeGreaterThan(5000);
});

describe('a destination that is gone for good', () => {
  test('is given up by a recorded decision, is not trusted when it returns, and is replaced', async () => {
    await bring('destination');
    const { epoch } = stage.traffic.current;
    relays.destination.cut();
    await expect(stage.restart()).rejects.toMatchObject({ code: 'route-unknown' });
    const signal = new AbortController().signal;
    expect(await stage.coordinator.abandonDestination('disk lost', signal)).toBe(epoch + 2);
    await expect(stage.coordinator.abandonDestination('again', signal)).rejects.toMatchObject({
      code: 'not-cut-over',
    });
    expect(await recoverOnly()).toMatchObject({ route: { side: 'source', epoch: epoch + 2 } });

    relays.destination.restore();
    const returned = await recoverOnly();
    expect(returned.route).toEqual({ side: 'source', epoch: epoch + 2 });
    stage.traffic.current = returned.route;
    await expect(stage.coordinator.ensureJournal()).rejects.toMatchObject({ code: 'journal-conflict' });

    await using other = await databasePair();
    await other.onDestination.query(TABLES_SQL);
    await stage.restart({ destination: other.destination });
    expect(stage.recovery).toMatchObject({ route: { side: 'source', epoch: epoch + 2 } });
    await stage.coordinator.installBarriers(TABLES);
    expect(await stage.operate('cutover')).toMatchObject({ outcome: 'done', epoch: epoch + 3 });
    stage.coordinator.destroy();
  });
});
