import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { expect, test } from 'vitest';
import { connectControl } from '../../src/core/postgres.js';
import { streamNames } from '../../src/shadow/postgres/slot.js';
import { databasePair, sharedEndpoint, until, type DatabasePair } from '../support/servers.js';
import { EngineHarness, sql } from './engine-harness.js';

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

test('behind a change that the source can never send the stream begins anew, and what it lacks is mended', async () => {
  await using pair = await databasePair();
  const { source, onSource } = pair;
  await sql(onSource, 'CREATE TABLE t (id int PRIMARY KEY, v text)');
  /** The server's answer to a change of more than 1 GB, instead of the stream. */
  const refusal = Buffer.from('SERROR\0VERROR\0CXX000\0Minvalid memory alloc request size\0\0');
  let refuses = false;
  let refused = 0;
  const relay = createServer((client) => {
    const server = connect(source.port, source.host);
    for (const socket of [client, server]) socket.on('error', () => undefined);
    client.on('close', () => server.destroy());
    server.on('close', () => client.destroy());
    server.pipe(client);
    client.on('data', (data) => {
      if (!refuses || !data.includes('START_REPLICATION')) {
        server.write(data);
        return;
      }
      refused += 1;
      const head = Buffer.from('E\0\0\0\0');
      head.writeInt32BE(refusal.length + 4, 1);
      client.end(Buffer.concat([head, refusal]));
    });
  }).listen(0, '127.0.0.1');
  await once(relay, 'listening');
  const address = relay.address();
  const port = typeof address === 'object' ? (address?.port ?? 0) : 0;
  try {
    await using harness = await new EngineHarness({ ...pair, source: { ...source, host: '127.0.0.1', port } })
      .start()
      .reach('following');
    await harness.caughtUp();
    const slot = async (): Promise<string | undefined> =>
      (await onSource.query<{ at: string }>(`SELECT restart_lsn::text AS at ${SLOTS}`)).rows[0]?.at;
    refuses = true;
    await onSource.query(`SELECT pg_terminate_backend(active_pid) ${SLOTS}`);
    await until(() => refused >= 2, { what: 'the stream to be refused' });
    await sql(onSource, `INSERT INTO t VALUES (1, 'never sent')`);
    const before = await slot();
    await until(async () => ![undefined, before].includes(await slot()), { what: 'another slot' });
    refuses = false;
    await harness.caughtUp();
    await harness.reach('following');
    await harness.expectSame();
    expect((await harness.engine.status()).error).toBeNull();
  } finally {
    relay.close();
  }
});
