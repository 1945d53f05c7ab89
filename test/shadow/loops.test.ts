import { expect, test } from 'vitest';
import { databasePair, until, type DatabasePair } from '../support/servers.js';
import { emitRoute, EngineHarness, sql } from './engine-harness.js';

async function changes(harness: EngineHarness, stream: 0 | 1): Promise<number> {
  return (await harness.engine.status()).streams[stream]?.changesApplied ?? -1;
}

/** Writes on the leading side, half of them the hard way, that name what they were done for. */
async function write(pair: DatabasePair, side: 'source' | 'destination', base: number): Promise<void> {
  await sql(
    side === 'source' ? pair.onSource : pair.onDestination,
    `INSERT INTO t SELECT n, 'by ${side}', repeat(md5(n::text), 300) FROM generate_series(${base}, ${base + 50}) n;
     UPDATE t SET v = 'updated' WHERE id BETWEEN ${base} AND ${base + 10};
     UPDATE t SET id = -id WHERE id BETWEEN ${base + 5} AND ${base + 15}; DELETE FROM t WHERE id % 7 = 0;
     INSERT INTO k VALUES ('${side}'), ('${side}'); DELETE FROM k WHERE ctid IN (SELECT ctid FROM k LIMIT 1);
     UPDATE k SET v = v || '.'; TRUNCATE log; INSERT INTO log VALUES (${base}, DEFAULT)`,
  );
}

test('changes cross once and in one direction, over cutover, rollback, restart and cutover again', async () => {
  await using pair = await databasePair();
  await sql(
    pair.onSource,
    `CREATE TABLE t (id int PRIMARY KEY, v text, body text); CREATE TABLE k (v text);
     CREATE TABLE log (id int PRIMARY KEY, at timestamptz DEFAULT clock_timestamp());
     INSERT INTO t SELECT n, 'first', repeat(md5(n::text), 300) FROM generate_series(1, 100) n; INSERT INTO k VALUES ('a'), ('a')`,
  );
  {
    await using harness = await new EngineHarness(pair).start().reach('following');
    await harness.engine.prepareReverse(AbortSignal.timeout(60_000));
    await harness.engine.prepareReverse(AbortSignal.timeout(60_000));

    // Before the cutover the way back is open, but carries nothing: neither echoes nor what got past the guard.
    await write(pair, 'source', 1000);
    await sql(
      pair.onDestination,
      `INSERT INTO t VALUES (5, 'astray', '')  ON CONFLICT DO NOTHING; INSERT INTO t VALUES (999999, 'astray', '')`,
    );
    await harness.caughtUp();
    await harness.caughtUp('reverse');
    expect(await changes(harness, 1)).toBe(0);
    const astray = await pair.onSource.query('SELECT FROM public.t WHERE id = 999999');
    expect(astray.rows).toEqual([]);
    await sql(pair.onDestination, 'DELETE FROM t WHERE id = 999999');
    await harness.caughtUp('reverse');
    await harness.expectSame();

    // Cutover: the fence's mark, the route, then writes on the destination.
    await harness.caughtUp();
    await emitRoute(pair.onDestination, 'destination', 1);
    const forward = await changes(harness, 0);
    await write(pair, 'destination', 2000);
    await harness.caughtUp('reverse');
    await harness.caughtUp();
    expect(await changes(harness, 0)).toBe(forward);
    expect(await changes(harness, 1)).toBeGreaterThan(50);
    await harness.expectSame();

    // Rollback.
    await harness.caughtUp('reverse');
    await emitRoute(pair.onSource, 'source', 2);
    const reverse = await changes(harness, 1);
    await write(pair, 'source', 3000);
    await harness.caughtUp();
    await harness.caughtUp('reverse');
    expect(await changes(harness, 1)).toBe(reverse);
    await harness.expectSame();

    // And forward again, with the process restarted while the destination leads and is written to.
    await harness.caughtUp();
    await emitRoute(pair.onDestination, 'destination', 3);
    await write(pair, 'destination', 4000);
  }
  await write(pair, 'destination', 5000);
  await using again = await new EngineHarness(pair).start().reach('following');
  await again.caughtUp('reverse');
  await again.expectSame();
  expect((await again.engine.status()).streams[1]).toMatchObject({
    direction: 'reverse',
    authoritative: true,
  });
  const report = await again.engine.verify({ direction: 'reverse' }, AbortSignal.timeout(60_000));
  expect(report.mismatches).toBe(0);

  // A column that both sides get is carried, and the stream of the side that does not lead passes over it.
  for (const client of [pair.onSource, pair.onDestination])
    await sql(client, 'ALTER TABLE t ADD COLUMN extra int');
  await sql(pair.onDestination, 'UPDATE t SET extra = id WHERE id < 20');
  await again.caughtUp('reverse');
  await again.caughtUp();
  await again.expectSame();
  // One that the source lacks holds the way back until the source has it, whatever is changed meanwhile.
  await sql(pair.onDestination, 'ALTER TABLE t ADD COLUMN late int; UPDATE t SET late = 1 WHERE id = 8');
  await until(
    async () => {
      const { error, phase } = await again.engine.status();
      expect(phase).toBe('following');
      return error?.code === 'catalog-changed' && /public\.t .*\blate\b/.test(error.message);
    },
    { what: 'the way back waiting' },
  );
  await sql(
    pair.onDestination,
    'ALTER TABLE t ADD COLUMN later int DEFAULT 5; UPDATE t SET later = 6 WHERE id = 9',
  );
  await sql(pair.onSource, 'ALTER TABLE t ADD COLUMN late int, ADD COLUMN later int DEFAULT 5');
  await again.caughtUp('reverse');
  await again.caughtUp();
  await again.expectSame();
  expect((await again.engine.status()).error).toBeNull();
  // One that is dropped is left alone on the source until it is dropped there.
  await sql(
    pair.onDestination,
    `ALTER TABLE t DROP COLUMN late; UPDATE t SET v = 'without' WHERE id IN (8, 9)`,
  );
  await again.caughtUp('reverse');
  const kept = await pair.onSource.query('SELECT v, late FROM public.t WHERE id = 8');
  expect(kept.rows).toEqual([{ v: 'without', late: '1' }]);
  await sql(pair.onSource, 'ALTER TABLE t DROP COLUMN late');
  await sql(pair.onDestination, `INSERT INTO t (id, v) VALUES (-1, 'last')`);
  await again.caughtUp('reverse');
  await again.caughtUp();
  await again.expectSame();
});

test('recently changed keys are compared alone, and forgotten once equal', async () => {
  await using pair = await databasePair();
  await sql(
    pair.onSource,
    'CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n FROM generate_series(1, 1000) n',
  );
  await using harness = await new EngineHarness(pair, { trimIntervalMs: 3_600_000 })
    .start()
    .reach('following');
  const recent = (): Promise<unknown> => harness.engine.verifyRecent('forward', AbortSignal.timeout(60_000));
  // Until a full comparison was clean, what was changed before is not known.
  expect(await recent()).toEqual({ keys: 0, mismatches: 0, differing: [], incomplete: true });
  await harness.engine.verify({ direction: 'forward' }, AbortSignal.timeout(60_000));
  await sql(
    pair.onSource,
    `UPDATE t SET v = 'x' WHERE id <= 10; DELETE FROM t WHERE id = 11; UPDATE t SET id = 5000 WHERE id = 12`,
  );
  await harness.caughtUp();
  await sql(pair.onDestination, `UPDATE t SET v = 'wrong' WHERE id = 3; INSERT INTO t VALUES (11)`);
  expect(await recent()).toEqual({
    keys: 13,
    mismatches: 2,
    differing: expect.arrayContaining([
      { table: 'public.t', key: '3' },
      { table: 'public.t', key: '11' },
    ]),
  });
  await sql(pair.onDestination, `UPDATE t SET v = 'x' WHERE id = 3; DELETE FROM t WHERE id = 11`);
  expect(await recent()).toMatchObject({ keys: 2, mismatches: 0 });
  expect(await recent()).toMatchObject({ keys: 0, mismatches: 0 });
});
