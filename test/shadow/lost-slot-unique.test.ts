import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import type pg from 'pg';
import { expect, test } from 'vitest';
import type { DatabaseEndpoint, SubsetRules } from '../../src/core/ports.js';
import { connectControl } from '../../src/core/postgres.js';
import { streamNames } from '../../src/shadow/postgres/slot.js';
import { databasePair, sharedEndpoint, until, type DatabasePair } from '../support/servers.js';
import { contents, EngineHarness, sql } from './engine-harness.js';

const SLOTS = 'FROM pg_catalog.pg_replication_slots WHERE database = pg_catalog.current_database()';

/** A shadow that is stopped, its slot gone, and `missed` written to the source since. */
async function withoutSlot(pair: DatabasePair, missed: string): Promise<void> {
  const { onSource } = pair;
  await sql(
    onSource,
    `CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a SELECT generate_series(1, 10);
     CREATE TABLE u (id int PRIMARY KEY, n int UNIQUE); INSERT INTO u SELECT n, n FROM generate_series(1, 2000) n`,
  );
  {
    await using first = await new EngineHarness(pair).start().reach('following');
    await first.caughtUp();
  }
  await until(async () => (await onSource.query(`SELECT ${SLOTS} AND active`)).rowCount === 0);
  await onSource.query(`SELECT pg_drop_replication_slot(slot_name) ${SLOTS}`);
  await sql(onSource, missed);
}

test('a value that moved between many rows while the slot was lost is mended', async () => {
  await using pair = await databasePair();
  await withoutSlot(pair, 'UPDATE u SET n = -n; UPDATE u SET n = 2001 - id');
  await using second = await new EngineHarness(pair).start().reach('following');
  await second.caughtUp();
  await second.expectSame();
});

test('a value whose old row is still to be mended does not hold the stream up', async () => {
  await using pair = await databasePair();
  const { onSource, onDestination } = pair;
  await withoutSlot(pair, 'DELETE FROM u WHERE id = 1500');
  await sql(onDestination, 'BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE');
  await using second = new EngineHarness(pair).start();
  await second.reach('repairing');
  await sql(onSource, 'INSERT INTO u VALUES (3000, 1500)');
  await second.caughtUp();
  // What mends goes at the copy's pace, and waits while that is paused.
  await second.engine.steer({ action: 'pause' });
  await sql(onDestination, 'COMMIT');
  for (let n = 0; n < 5; n++) await second.caughtUp();
  const { phase, warnings } = await second.engine.status();
  expect({ phase, warnings }).toMatchObject({ phase: 'repairing', warnings: [{ code: 'slot-renewed' }] });
  await second.engine.steer({ action: 'resume' });
  await second.reach('following');
  await second.caughtUp();
  await second.expectSame();
  expect((await second.engine.status()).steering?.stuck).toEqual([]);
});

test('a slot of the same name in another database is not taken for what an earlier shadow left', async () => {
  await using pair = await databasePair();
  const { slot } = streamNames(pair.source.database, 'forward');
  const elsewhere = await connectControl('source', sharedEndpoint('source', 'postgres'), { purpose: 'test' });
  try {
    await elsewhere.query(`SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, [slot]);
    await using harness = await new EngineHarness(pair).start().reach('failed');
    expect((await harness.engine.status()).error).toMatchObject({ code: 'slot-lost' });
    const { rowCount } = await elsewhere.query('SELECT pg_drop_replication_slot($1)', [slot]);
    expect(rowCount).toBe(1);
  } finally {
    await elsewhere.end();
  }
});

interface Relay extends AsyncDisposable {
  readonly endpoint: DatabaseEndpoint;
  refuses: boolean;
}

/** Passes everything on; while it refuses, a stream is answered as by a server that holds a change of more than 1 GB. */
async function relayTo(to: DatabaseEndpoint): Promise<Relay> {
  const refusal = Buffer.from('SERROR\0VERROR\0CXX000\0Minvalid memory alloc request size\0\0');
  const head = Buffer.from('E\0\0\0\0');
  head.writeInt32BE(refusal.length + 4, 1);
  const state = { refuses: false };
  const server = createServer((client) => {
    const behind = connect(to.port, to.host);
    for (const socket of [client, behind]) socket.on('error', () => undefined);
    client.on('close', () => behind.destroy());
    behind.on('close', () => client.destroy());
    behind.pipe(client);
    client.on('data', (data) => {
      if (!state.refuses || !data.includes('START_REPLICATION')) {
        behind.write(data);
        return;
      }
      client.end(Buffer.concat([head, refusal]));
    });
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  const port = typeof address === 'object' ? (address?.port ?? 0) : 0;
  return Object.assign(state, {
    endpoint: { ...to, host: '127.0.0.1', port },
    [Symbol.asyncDispose]: () => Promise.resolve(void server.close()),
  });
}

/** Where the slot that a side has begins. */
async function slotOn(client: pg.Client): Promise<string | undefined> {
  return (await client.query<{ at: string }>(`SELECT restart_lsn::text AS at ${SLOTS}`)).rows[0]?.at;
}

test('a change that can never be sent is passed over, and what is missed by it is mended', async () => {
  await using pair = await databasePair();
  const { onSource, onDestination } = pair;
  await using source = await relayTo(pair.source);
  await using destination = await relayTo(pair.destination);
  await sql(onSource, 'CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE o (id int PRIMARY KEY)');
  const sides = { ...pair, source: source.endpoint, destination: destination.endpoint };
  const subsets: readonly SubsetRules[] = [
    { subset: 'o', tables: ['public.o'], foreignKeys: 'together', crossing: 'refuse' },
  ];
  await using harness = await new EngineHarness(sides, { subsets }).start().reach('following');
  await harness.engine.prepareReverse(AbortSignal.timeout(60_000));
  await harness.caughtUp();

  // On the way back while the source leads, as a row that was mended is: nothing comes by it, nothing else is disturbed.
  const phases = harness.phases.length;
  const reverseBefore = await slotOn(onDestination);
  destination.refuses = true;
  await onDestination.query(`SELECT pg_terminate_backend(active_pid) ${SLOTS}`);
  await sql(onDestination, 'CREATE TABLE public.noise AS SELECT 1; DROP TABLE public.noise');
  await until(async () => ![undefined, reverseBefore].includes(await slotOn(onDestination)), {
    what: 'another slot of the way back',
  });
  // Behind a fence, nothing is switched that could not come back.
  await expect(harness.caughtUp()).rejects.toThrow('the reverse is not ready yet');
  destination.refuses = false;
  await harness.caughtUp('reverse');
  expect(harness.phases.slice(phases)).toEqual([]);
  expect((await harness.engine.status()).error).toBeNull();

  // While the sides lead different subsets, what the source leads is mended from it, and nothing else.
  await sql(
    onSource,
    `CREATE TABLE understudy.epoch (subset text, fenced bool, epoch bigint, operation uuid);
     INSERT INTO understudy.epoch VALUES ('o', true, 1), ('rest', false, 0)`,
  );
  await sql(onDestination, 'INSERT INTO o VALUES (7)');
  const before = await slotOn(onSource);
  source.refuses = true;
  await onSource.query(`SELECT pg_terminate_backend(active_pid) ${SLOTS}`);
  await sql(onSource, `INSERT INTO t VALUES (1, 'never sent')`);
  await until(async () => ![undefined, before].includes(await slotOn(onSource)), { what: 'another slot' });
  source.refuses = false;
  await until(() => harness.phases.slice(phases).includes('repairing'), { what: 'the repair' });
  await harness.reach('following');
  await harness.caughtUp();
  const there = await contents(onDestination);
  expect(there).toEqual({ ...(await contents(onSource)), 'public.o': ["'7'"] });
  expect((await harness.engine.status()).error).toBeNull();
});
