import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { applyRestMs, copyRestMs, flushIntervalMs } from '../../src/shadow/intensity.js';
import { Pace } from '../../src/shadow/pace.js';
import { databasePair, until } from '../support/servers.js';
import { EngineHarness, sql } from './engine-harness.js';

test('an intensity maps to the time a change may wait and to the share of time the copy reads', () => {
  expect(flushIntervalMs(1, 20)).toBe(20);
  expect(flushIntervalMs(0, 20)).toBe(60_000);
  expect(flushIntervalMs(0.5, 20)).toBe(1095);
  expect(flushIntervalMs(0.5, 0)).toBe(245);
  expect(copyRestMs(1, 40)).toBe(0);
  expect(copyRestMs(0.25, 40)).toBe(120);
  expect(copyRestMs(0, 40)).toBeCloseTo(1960);
  expect(applyRestMs(1, 40)).toBe(0);
  expect(applyRestMs(0.5, 40)).toBe(40);
  expect(applyRestMs(0, 40)).toBeCloseTo(360);
});

test('while the servers keep too much log, what catches up hurries and the copy waits', () => {
  const pace = new Pace();
  pace.intensity = 0.25;
  pace.throttle = 0.5;
  expect([pace.copyShare, pace.copyWaits, pace.applyRestMs(10), pace.intervalMs(60)]).toEqual([
    0.125,
    false,
    30,
    flushIntervalMs(0.25, 60),
  ]);
  pace.hurried = () => true;
  expect([pace.copyWaits, pace.applyRestMs(10), pace.intervalMs(60)]).toEqual([true, 0, 60]);
});

test.each(['log', 'poll'] as const)(
  'by %s, tables asked for are copied before others, at once',
  async (method) => {
    await using pair = await databasePair();
    await sql(
      pair.onSource,
      `CREATE TABLE big (id int PRIMARY KEY, v text); INSERT INTO big SELECT n, 'x' FROM generate_series(1, 3000) n;
     CREATE TABLE cold (id int PRIMARY KEY); INSERT INTO cold SELECT generate_series(1, 200);
     CREATE TABLE hot (id int PRIMARY KEY); INSERT INTO hot SELECT generate_series(1, 50)`,
    );
    let pause = async (): Promise<void> => undefined;
    await using harness = new EngineHarness(pair, { method, chunkRows: 50, copyConcurrency: 1 }, () =>
      pause(),
    );
    pause = async () => void (await harness.engine.steer({ action: 'pause' }));
    await harness.start().reach('copying');
    const tables = async (): Promise<Record<string, boolean | number>> =>
      Object.fromEntries(
        (await harness.engine.status()).tables.flatMap(({ table, rowsCopied, done }) => [
          [table, done],
          [`${table} rows`, rowsCopied],
        ]),
      );
    await expect(
      harness.engine.steer({ action: 'prioritise', tables: ['public.none'] }),
    ).rejects.toMatchObject({ code: 'request-invalid' });

    await harness.engine.steer({ action: 'intensity', value: 0.2 });
    await harness.engine.steer({ action: 'resume' });
    await until(async () => Number((await tables())['public.big rows']) > 100, {
      what: 'the largest to be begun',
    });
    const { first } = await harness.engine.steer({
      action: 'prioritise',
      tables: ['public.hot', 'public.cold', 'public.hot'],
    });
    expect(first).toEqual(['public.hot', 'public.cold']);
    await until(async () => (await tables())['public.hot'] === true, { what: 'the hot table' });
    expect(await tables()).toMatchObject({ 'public.big': false });
    await until(async () => (await tables())['public.cold'] === true, { what: 'the next table' });
    expect(await tables()).toMatchObject({ 'public.big': false });

    await harness.engine.steer({ action: 'intensity', value: 1 });
    await harness.reach('following');
    expect((await harness.engine.status()).copy.rows).toBe(3250);
    await harness.expectSame();
  },
);

test('a change that the destination refuses is named, held, and let in or left out', async () => {
  await using pair = await databasePair();
  const { onSource, onDestination } = pair;
  await sql(
    onSource,
    `CREATE TABLE item (id int, part text, v int, PRIMARY KEY (id, part));
     INSERT INTO item SELECT n, 'p', n FROM generate_series(1, 20) n`,
  );
  await using harness = new EngineHarness(pair).start();
  await harness.reach('following');
  await harness.caughtUp();
  const stuck = async () => (await harness.engine.status()).steering?.stuck ?? [];

  await expect(harness.engine.steer({ action: 'skip', note: '' })).rejects.toMatchObject({
    code: 'request-invalid',
  });
  await sql(onDestination, `ALTER TABLE item ADD CONSTRAINT small CHECK (v < 1000)`);
  await onSource.query(`BEGIN; UPDATE public.item SET v = 1 WHERE id = 1; UPDATE public.item SET v = 5000 WHERE id = 7;
    UPDATE public.item SET v = 2 WHERE id = 2; COMMIT`);
  await until(async () => (await stuck()).length === 1, { what: 'the lane to be stuck' });
  expect(await stuck()).toEqual([
    {
      direction: 'forward',
      table: 'public.item',
      kind: 'update',
      keyColumns: ['id', 'part'],
      keyHash: createHash('md5').update('7,p').digest('hex').slice(0, 12),
      position: expect.stringMatching(/^[0-9A-F]+\/[0-9A-F]+$/) as string,
      ordinal: 1,
      sqlState: '23514',
    },
  ]);
  const { phase, error } = await harness.engine.status();
  expect(phase).toBe('following');
  expect(error?.code).toBe('apply-failed');
  expect(error?.message).not.toContain('5000');

  // Left out by a recorded decision: the rest of its transaction is there, and only its row differs.
  const steering = await harness.engine.steer({ action: 'skip', note: 'known to be wrong' });
  expect(steering.skipped?.ordinal).toBe(1);
  await harness.caughtUp();
  expect((await harness.engine.status()).error).toBeNull();
  const found = await harness.engine.verify({ direction: 'forward' }, new AbortController().signal);
  expect(found.verdicts.flatMap(({ differingKeys }) => differingKeys)).toEqual([
    { key: '7,p', difference: 'different' },
  ]);
  const { rows } = await onDestination.query(
    'SELECT schema_and_table, kind, ordinal, note FROM understudy.skipped_change',
  );
  expect(rows).toEqual([
    { schema_and_table: 'public.item', kind: 'update', ordinal: '1', note: 'known to be wrong' },
  ]);

  // Let in: what refuses it is taken away.
  await onSource.query('INSERT INTO public.item VALUES (100, $1, 2000)', ['q']);
  await until(async () => (await stuck()).length === 1, { what: 'the lane to be stuck again' });
  await sql(onDestination, 'ALTER TABLE item DROP CONSTRAINT small');
  await harness.caughtUp();
  expect(await stuck()).toEqual([]);
  const mended = await harness.engine.verify(
    { direction: 'forward', repair: true },
    new AbortController().signal,
  );
  expect(mended.repair).toEqual({ rows: 1, tables: 1, remaining: 0 });
  await harness.expectSame();
});

test('the copy pauses and resumes, and an intensity holds changes back until something asks for them', async () => {
  await using pair = await databasePair();
  await sql(
    pair.onSource,
    `CREATE TABLE doc (id int PRIMARY KEY); INSERT INTO doc SELECT generate_series(1, 1000)`,
  );
  let pause = async (): Promise<void> => undefined;
  await using harness = new EngineHarness(pair, { chunkRows: 100 }, () => pause());
  pause = async () => void (await harness.engine.steer({ action: 'pause' }));
  harness.start();
  await harness.reach('copying');
  expect((await harness.engine.status()).steering?.paused).toBe(true);
  expect((await harness.engine.status()).copy.rows).toBe(0);
  await harness.engine.steer({ action: 'resume' });
  await harness.reach('following');

  const { flushIntervalMs: waits } = await harness.engine.steer({ action: 'intensity', value: 0 });
  expect(waits).toBe(60_000);
  await harness.caughtUp();
  await pair.onSource.query('INSERT INTO public.doc VALUES (5000)');
  const { rowCount } = await pair.onDestination.query('SELECT FROM public.doc WHERE id = 5000');
  expect(rowCount).toBe(0);
  // A mark flushes at once, and so does the way back to eagerness.
  await harness.caughtUp();
  await harness.expectSame();
  await pair.onSource.query('INSERT INTO public.doc VALUES (5001)');
  await harness.engine.steer({ action: 'intensity', value: 1 });
  await until(
    async () => (await pair.onDestination.query('SELECT FROM public.doc WHERE id = 5001')).rowCount === 1,
  );
});

test('a destination that is full, or takes no writes for a while, is waited for and said to be', async () => {
  await using pair = await databasePair();
  const { onSource, onDestination } = pair;
  await sql(
    onSource,
    `CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item SELECT generate_series(1, 10)`,
  );
  await using harness = new EngineHarness(pair).start();
  await harness.reach('following');
  await harness.caughtUp();
  // As a server answers whose disk is full, and one that is still a standby.
  for (const [n, sqlState] of ['53100', '25006'].entries()) {
    await sql(
      onDestination,
      `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
         $$BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '${sqlState}'; END$$;
       CREATE TRIGGER refuse BEFORE INSERT ON item EXECUTE FUNCTION refuse();
       ALTER TABLE item ENABLE ALWAYS TRIGGER refuse`,
    );
    await sql(onSource, `INSERT INTO item VALUES (${100 + n}); DELETE FROM item WHERE id = ${n + 1}`);
    await until(async () => (await harness.engine.status()).error?.code === 'destination-query-failed', {
      what: 'the trouble to be told',
    });
    const { phase, error, steering } = await harness.engine.status();
    expect({ phase, stuck: steering?.stuck }).toEqual({ phase: 'following', stuck: [] });
    expect(error?.message).toContain(sqlState);
    await sql(onDestination, 'DROP TRIGGER refuse ON item; DROP FUNCTION refuse()');
    await harness.caughtUp();
    expect((await harness.engine.status()).error).toBeNull();
    await harness.expectSame();
  }
});
