import { expect, test } from 'vitest';
import type { ConflictRecord } from '../../src/core/ports.js';
import { connectControl } from '../../src/core/postgres.js';
import { databasePair, until } from '../support/servers.js';
import { EngineHarness, sql } from './engine-harness.js';

async function conflict(harness: EngineHarness, key: string): Promise<ConflictRecord | undefined> {
  return (await harness.engine.conflicts(100)).find((record) => record.key === key);
}

test('one that waits for a lock holds up no other, and a column t is no row', async () => {
  await using pair = await databasePair();
  const { onSource, onDestination } = pair;
  await sql(
    onSource,
    `CREATE TABLE r (id int PRIMARY KEY, t int, v text);
     INSERT INTO r SELECT n, 1, 'first' FROM generate_series(1, 10) n`,
  );
  const locker = await connectControl('source', pair.source, { purpose: 'test' });
  try {
    await using harness = await new EngineHarness(pair, { conflicts: { rule: 'destination-wins' } })
      .start()
      .reach('following');
    await harness.engine.prepareReverse(AbortSignal.timeout(60_000));
    await locker.query('BEGIN');
    await locker.query('SELECT FROM public.r WHERE id = 2 FOR UPDATE');
    await sql(onDestination, `UPDATE r SET v = 'locked' WHERE id = 2; UPDATE r SET v = 'stray' WHERE id = 3`);
    await until(async () => (await conflict(harness, '3'))?.state === 'settled', { what: 'the third' });
    expect(await conflict(harness, '3')).toMatchObject({ winner: 'destination' });
    expect((await onSource.query('SELECT v FROM public.r WHERE id = 3')).rows).toEqual([{ v: 'stray' }]);
    expect(await conflict(harness, '2')).toMatchObject({ state: 'open' });
    await locker.query('ROLLBACK');
    await until(async () => (await conflict(harness, '2'))?.state === 'settled', { what: 'the second' });
    await harness.caughtUp();
    await harness.expectSame();
  } finally {
    await locker.end();
  }
});
