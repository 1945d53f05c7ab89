import { expect, test } from 'vitest';
import { connectControl } from '../../src/core/postgres.js';
import { databasePair } from '../support/servers.js';
import { EngineHarness, JOURNAL, sql } from './engine-harness.js';

test('verify --repair mends cells, missing and extra rows beside live traffic, and records both rows', async () => {
  await using pair = await databasePair();
  const { onSource, onDestination } = pair;
  await sql(
    onSource,
    `CREATE TABLE item (id int PRIMARY KEY, note text, big text);
     INSERT INTO item SELECT n, 'note ' || n, repeat(md5(n::text), 100) FROM generate_series(1, 300) n;
     CREATE TABLE part (a numeric, b text COLLATE "C", v int, PRIMARY KEY (a, b));
     INSERT INTO part SELECT n, 'ключ "' || n, n FROM generate_series(1, 50) n;
     CREATE TABLE event (at int, what text);
     INSERT INTO event SELECT n % 10, 'same' FROM generate_series(1, 100) n;
     CREATE TABLE u (id int PRIMARY KEY, n int UNIQUE); INSERT INTO u SELECT n, n FROM generate_series(1, 1200) n`,
  );
  await using harness = new EngineHarness(pair).start();
  await harness.reach('following');
  await harness.caughtUp();
  await sql(
    onDestination,
    `UPDATE item SET note = 'corrupted' WHERE id IN (7, 8);
     DELETE FROM item WHERE id = 20;
     INSERT INTO item VALUES (1000, 'extra', 'x');
     UPDATE part SET v = -1 WHERE a = 5;
     DELETE FROM part WHERE a = 6;
     DELETE FROM event WHERE at = 3;
     INSERT INTO event VALUES (77, 'extra')`,
  );
  const signal = new AbortController().signal;
  // A unique value that moved between rows which are not mended together.
  await sql(onDestination, 'UPDATE u SET n = -n; UPDATE u SET n = 1201 - id');
  const found = await harness.engine.verify({ direction: 'forward' }, signal);
  expect(found.mismatches).toBe(4 + 2 + 11 + 1200);
  expect(found.repair).toBeUndefined();
  expect(found.verdicts.find(({ table }) => table === 'public.item')?.differingKeys).toEqual(
    expect.arrayContaining([
      { key: '7', difference: 'different' },
      { key: '20', difference: 'missing' },
      { key: '1000', difference: 'extra' },
    ]),
  );

  const writing = new AbortController();
  const writer = (async () => {
    for (let n = 0; !writing.signal.aborted; n++) {
      await onSource.query('UPDATE public.item SET note = $1 WHERE id BETWEEN 6 AND 30', [`live ${n}`]);
      await onSource.query('UPDATE public.part SET v = v + 1 WHERE a = 40');
      await onSource.query('INSERT INTO public.event VALUES ($1, $2)', [n, 'live']);
    }
  })();
  try {
    const mended = await harness.engine.verify({ direction: 'forward', repair: true }, signal);
    expect(mended.mismatches).toBeGreaterThan(0);
    expect(mended.repair).toMatchObject({ tables: 4, remaining: 0 });
    expect((await harness.engine.status()).lastVerify?.mismatches).toBe(0);
  } finally {
    writing.abort();
    await writer;
  }
  await harness.caughtUp();
  await harness.expectSame();

  const { rows } = await onDestination.query<{ key: string; before: string | null; after: string | null }>(
    `SELECT array_to_string(key, ',') AS key, before->>'note' AS before, after->>'note' AS after
     FROM understudy.repaired_row WHERE table_name = 'item' AND key[1] IN ('1000', '20') ORDER BY 1`,
  );
  expect(rows).toEqual([
    { key: '1000', before: 'extra', after: null },
    ...rows.filter(({ key }) => key === '20'),
  ]);

  // A cutover that commits while it is compared: what leads is not replaced by what led, row by row or whole.
  await sql(
    onDestination,
    `${JOURNAL}; UPDATE understudy.route SET side = 'destination'; DELETE FROM event WHERE at = 3`,
  );
  const kept = 'SELECT count(*) AS n FROM public.event';
  const { rows: before } = await onDestination.query(kept);
  await expect(harness.engine.verify({ direction: 'forward', repair: true }, signal)).rejects.toMatchObject({
    code: 'repair-failed',
  });
  expect((await onDestination.query(kept)).rows).toEqual(before);
});

test('a repair leaves alone what the stream changes while it reads', async () => {
  await using pair = await databasePair();
  const { onSource, onDestination } = pair;
  await sql(
    onSource,
    `CREATE TABLE doc (id int PRIMARY KEY, body text);
     INSERT INTO doc SELECT n, 'body ' || n FROM generate_series(1, 20) n`,
  );
  await using harness = new EngineHarness(pair).start();
  await harness.reach('following');
  await harness.caughtUp();
  await sql(onDestination, `UPDATE doc SET body = 'corrupted' WHERE id <= 10`);
  // The repair's read waits behind this lock; what commits with it is in the stream between low and high.
  const locker = await connectControl('source', pair.source, { purpose: 'test' });
  try {
    const repairing = harness.engine.verify(
      { direction: 'forward', tables: ['public.doc'], repair: true },
      new AbortController().signal,
    );
    for (let n = 0; n < 40; n++) {
      await locker.query(
        `BEGIN; LOCK TABLE public.doc IN ACCESS EXCLUSIVE MODE; UPDATE public.doc SET body = 'during ${n}' WHERE id IN (1, 11);
         DELETE FROM public.doc WHERE id = 2; INSERT INTO public.doc VALUES (2, 'again ${n}'); COMMIT`,
      );
    }
    expect((await repairing).repair?.remaining).toBe(0);
  } finally {
    await locker.end();
  }
  await harness.caughtUp();
  await harness.expectSame();
});

test('a comparison that was interrupted goes on where it had come to, and rests as it is told', async () => {
  await using pair = await databasePair();
  const { onSource, onDestination } = pair;
  await sql(
    onSource,
    ['a', 'b', 'c']
      .map(
        (name) =>
          `CREATE TABLE ${name} (id int PRIMARY KEY, v text); INSERT INTO ${name} SELECT n FROM generate_series(1, 100) n`,
      )
      .join(';'),
  );
  await using harness = new EngineHarness(pair, { trimIntervalMs: 3_600_000 }).start();
  await harness.reach('following');
  await harness.caughtUp();
  await sql(onDestination, `UPDATE a SET v = 'wrong' WHERE id = 1`);
  const tables: string[] = [];
  const interrupting = new AbortController();
  const first = harness.engine.verify(
    { direction: 'forward', intensity: 0.5 },
    interrupting.signal,
    ({ table }) => {
      if (tables.at(-1) !== table) tables.push(table);
      if (table === 'public.c') interrupting.abort(new Error('interrupted'));
    },
  );
  await expect(first).rejects.toThrow('interrupted');
  expect(tables).toEqual(['public.a', 'public.b', 'public.c']);

  // What was equal is left out; what was changed there since is still looked at behind a fence.
  await sql(onSource, `UPDATE b SET v = 'new' WHERE id = 2`);
  await harness.caughtUp();
  const again: string[] = [];
  const report = await harness.engine.verify(
    { direction: 'forward', resume: true, repair: true },
    AbortSignal.timeout(60_000),
    ({ table }) => again.push(table),
  );
  expect(new Set(again)).toEqual(new Set(['public.a', 'public.c', '']));
  expect(report).toMatchObject({ tables: 3, rows: 300, mismatches: 1, repair: { remaining: 0 } });
  expect(await harness.engine.verifyRecent('forward', AbortSignal.timeout(60_000))).toMatchObject({
    keys: 1,
    mismatches: 0,
  });
  // Nothing is left to be resumed: everything is compared.
  const whole = await harness.engine.verify(
    { direction: 'forward', resume: true },
    AbortSignal.timeout(60_000),
  );
  expect(whole).toMatchObject({ tables: 3, rows: 300, mismatches: 0 });
});
