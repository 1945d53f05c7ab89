/** What the barrier refuses, whom it lets through, and that it never wins against an application's transaction. */
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { systemClock } from '../../src/core/clock.js';
import { connectControl } from '../../src/core/postgres.js';
import type { DatabaseEndpoint, Side } from '../../src/core/ports.js';
import {
  barrierState,
  createBarrierObjects,
  installBarrier,
  planBarrier,
  readBarrier,
  rehearseChange,
  removeBarrier,
} from '../../src/cutover/barrier.js';
import type { BarrierLimits } from '../../src/cutover/barrier-locks.js';
import {
  armFence,
  fenceChange,
  lowerFence,
  raiseFence,
  readEpoch,
  type FenceTarget,
} from '../../src/cutover/fence.js';
import { Connections, type Session } from '../../src/cutover/session.js';
import { SUPERUSER, SUPERUSER_PASSWORD } from '../../src/app/demo/embedded-server.js';
import { FAST_SETTINGS } from '../support/global-setup.js';
import { databasePair, until, type DatabasePair, ownServer } from '../support/servers.js';
import { TABLES, TABLES_SQL } from './stage.js';

const SUBSET = 'all';
const LIMITS: BarrierLimits = {
  clock: systemClock,
  signal: new AbortController().signal,
  lockTimeoutMs: 20,
  timeoutMs: 10_000,
};

/** Statements that must all be refused: root, leaf, parent, child, every verb, every way in. */
const WRITES = [
  `INSERT INTO public.root VALUES (1, 1)`,
  `INSERT INTO public.leaf_1 VALUES (1, 1)`,
  `UPDATE public.root SET id = id`,
  `UPDATE ONLY public.leaf_2 SET id = id`,
  `DELETE FROM public.leaf_1`,
  `INSERT INTO public.parent VALUES (1)`,
  `INSERT INTO public.child VALUES (1)`,
  `DELETE FROM public.parent`,
  `UPDATE ONLY public.child SET note = 'x'`,
  `TRUNCATE public.root`,
  `TRUNCATE public.leaf_1`,
  `TRUNCATE public.child`,
  `TRUNCATE public.plain`,
  `INSERT INTO public.plain (note) VALUES ('x') ON CONFLICT DO NOTHING`,
  `WITH w AS (INSERT INTO public.plain (note) VALUES ('x') RETURNING id) SELECT * FROM w`,
  `COPY public.plain (note) FROM PROGRAM 'echo x'`,
  `COPY public.leaf_1 FROM PROGRAM 'echo 1,1' (FORMAT csv)`,
  `INSERT INTO "odd ""name"."Tab le" VALUES (1)`,
];

/** On either server the barrier is made by the same code, as the source's fence: its record needs no journal. */
describe.each(['source', 'destination'] as const)('on the %s’s server', (side) => {
  let pair: DatabasePair;
  let connections: Connections;
  let session: Session;
  let application: pg.Client;
  let attempts = 0;
  let epoch = 0;

  const endpoint = (): DatabaseEndpoint => pair[side];
  const code = async (run: Promise<unknown>): Promise<string | undefined> => {
    try {
      await run;
      return undefined;
    } catch (error) {
      return (error as pg.DatabaseError).code;
    }
  };
  const target = async (limits = LIMITS): Promise<FenceTarget> => ({
    session,
    plan: await planBarrier(session, limits.lockTimeoutMs),
    subset: SUBSET,
    limits,
  });
  const key = (): { id: string; attempt: string; epoch: number } => ({
    id: `op-${attempts}`,
    attempt: 'n',
    epoch,
  });
  const raise = async (limits = LIMITS): Promise<boolean> =>
    (await armFence(session, SUBSET, key())) &&
    (await raiseFence(await target(limits), [{ subset: SUBSET, key: key() }], `mark-${attempts}`));
  const lower = async (): Promise<void> => {
    await lowerFence(await target(), key());
    attempts++;
  };

  beforeAll(async () => {
    pair = await databasePair();
    const there = pair[side];
    connections = new Connections({ source: there, destination: there }, 3000);
    session = await connections.open('source', 'barrier');
    application = await connectControl(side, endpoint(), { purpose: 'application' });
    await application.query(TABLES_SQL);
    await application.query(`DO $$ BEGIN CREATE ROLE understudy_plain_user SUPERUSER;
      EXCEPTION WHEN duplicate_object THEN NULL; END $$`);
    await createBarrierObjects(session, SUBSET);
    await installBarrier(session, TABLES, false, LIMITS);
  });
  afterAll(async () => {
    await application.end();
    connections.destroy();
    await pair[Symbol.asyncDispose]();
  });

  test('lowered, it lets every write through; raised, it refuses every one; lowered again, none', async () => {
    for (const sql of WRITES) expect([sql, await rolledBack(application, sql)]).toEqual([sql, undefined]);
    expect(await raise()).toBe(true);
    expect(barrierState(await readBarrier(session))).toBe('raised');
    for (const sql of WRITES) expect([sql, await rolledBack(application, sql)]).toEqual([sql, 'UFENC']);
    expect(await code(application.query('SELECT count(*) FROM public.root'))).toBeUndefined();
    await lower();
    expect(barrierState(await readBarrier(session))).toBe('lowered');
    for (const sql of WRITES) expect([sql, await rolledBack(application, sql)]).toEqual([sql, undefined]);
  });

  test('a rehearsal waits for no writer, holds none up, and leaves nothing behind', async () => {
    await armFence(session, SUBSET, key());
    const record = await readEpoch(session, SUBSET);
    const source = `SELECT pg_get_functiondef('understudy.refuse_write'::regproc) AS body`;
    const before: unknown = (await application.query(source)).rows;
    await application.query(`BEGIN; INSERT INTO public.plain (note) VALUES ('open')`);
    const change = {
      ...fenceChange([{ subset: SUBSET, key: key() }], 'rehearsed'),
      alsoSql: ['SELECT 1 / 0'],
    };
    await rehearseChange(session, await planBarrier(session, LIMITS.lockTimeoutMs), change);
    await application.query('ROLLBACK');
    expect(barrierState(await readBarrier(session))).toBe('lowered');
    expect(await readEpoch(session, SUBSET)).toEqual(record);
    expect((await application.query(source)).rows).toEqual(before);
    const { rows } = await application.query(`SELECT to_regclass('understudy.rehearsal') AS made`);
    expect(rows).toEqual([{ made: null }]);
    // Its claim hit: the record was armed. What fails leaves no transaction open.
    const broken = { ...change, claimSql: ['SELECT 1 / 0'] };
    await expect(
      rehearseChange(session, await planBarrier(session, LIMITS.lockTimeoutMs), broken),
    ).rejects.toMatchObject({ details: { sqlState: '22012' } });
    expect((await session.run('SELECT 1')).count).toBe(1);
    attempts++;
  });

  test('the refusal names table, operation and epoch, and says what to do', async () => {
    await raise();
    await application.query(`INSERT INTO public.leaf_1 VALUES (1, 1)`).catch((error: pg.DatabaseError) => {
      expect(error.code).toBe('UFENC');
      expect(error.message).toContain('INSERT on public.leaf_1 refused');
      expect(error.message).toContain(`operation op-${attempts}, epoch ${epoch + 1}`);
      expect(error.message).toContain('connect through Understudy');
    });
    expect.assertions(5);
    await lower();
    expect(true).toBe(true);
  });

  test('replica role alone is no way through, nor is the registered user alone; both together are', async () => {
    await raise();
    const registered = await connectControl(side, endpoint(), {
      purpose: 'apply',
      settings: { session_replication_role: 'replica' },
    });
    expect(await rolledBack(registered, 'INSERT INTO public.leaf_1 VALUES (1, 1)')).toBeUndefined();
    expect(await rolledBack(registered, 'TRUNCATE public.root')).toBeUndefined();
    await registered.query('SET session_replication_role = origin');
    expect(await rolledBack(registered, 'INSERT INTO public.leaf_1 VALUES (1, 1)')).toBe('UFENC');
    await registered.query(
      'SET SESSION AUTHORIZATION understudy_plain_user; SET session_replication_role = replica',
    );
    expect(await rolledBack(registered, 'INSERT INTO public.leaf_1 VALUES (1, 1)')).toBe('UFENC');
    expect(await rolledBack(registered, 'TRUNCATE public.root')).toBe('UFENC');
    await registered.end();
    await lower();
  });

  test('a role that may write the table and nothing else gets the barrier’s error, not one about privileges', async () => {
    await raise();
    await application.query(`DO $$ BEGIN CREATE ROLE understudy_poor_user; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
      GRANT INSERT ON public.plain TO understudy_poor_user`);
    await application.query('SET ROLE understudy_poor_user');
    expect(await code(application.query(`INSERT INTO public.plain (note) VALUES ('x')`))).toBe('UFENC');
    await application.query('RESET ROLE; REVOKE ALL ON public.plain FROM understudy_poor_user');
    await lower();
  });

  test('a client’s search_path and shadowing functions don’t open it', async () => {
    await application.query(`CREATE SCHEMA IF NOT EXISTS trick;
      CREATE OR REPLACE FUNCTION trick.current_setting(text) RETURNS text LANGUAGE sql AS $$ SELECT 'replica' $$;
      CREATE OR REPLACE FUNCTION trick.always(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$;
      CREATE OPERATOR trick.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trick.always);`);
    await raise();
    await application.query('SET search_path = trick, pg_catalog');
    expect(await rolledBack(application, 'INSERT INTO public.leaf_1 VALUES (1, 1)')).toBe('UFENC');
    await application.query(`SET search_path = ''; DROP SCHEMA trick CASCADE`);
    await lower();
  });

  test('a REPEATABLE READ transaction begun before the fence is refused after it', async () => {
    await application.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
    await application.query('SELECT count(*) FROM public.plain');
    await raise();
    expect(await code(application.query(`INSERT INTO public.plain (note) VALUES ('old snapshot')`))).toBe(
      'UFENC',
    );
    await application.query('ROLLBACK');
    await lower();
  });

  test('a prepared plan made before the fence is refused after it', async () => {
    await application.query('PREPARE old AS INSERT INTO public.leaf_1 VALUES (7, 7)');
    for (let i = 0; i < 6; i++) expect(await rolledBack(application, 'EXECUTE old')).toBeUndefined();
    await raise();
    expect(await code(application.query('EXECUTE old'))).toBe('UFENC');
    await application.query('DEALLOCATE old');
    await lower();
  });

  test('a writer that is under way finishes first', async () => {
    await application.query('BEGIN');
    await application.query(`INSERT INTO public.plain (note) VALUES ('before')`);
    let raised = false;
    const raising = raise().then(() => (raised = true));
    await until(async () => (await waiting(pair, side)) > 0, { what: 'the fence to wait' });
    expect(raised).toBe(false);
    await application.query('COMMIT');
    await raising;
    expect(await code(application.query(`INSERT INTO public.plain (note) VALUES ('after')`))).toBe('UFENC');
    await lower();
  });

  test('a writer that doesn’t finish makes the fence give up at its deadline, naming it, with nothing raised', async () => {
    await application.query('BEGIN');
    await application.query(`INSERT INTO public.plain (note) VALUES ('long')`);
    const pid =
      (await application.query<{ pid: string }>('SELECT pg_backend_pid() AS pid')).rows[0]?.pid ?? '';
    const failing = raise({ ...LIMITS, timeoutMs: 150 });
    await expect(failing).rejects.toMatchObject({
      code: 'fence-timeout',
      message: expect.stringContaining(`process ${pid}`) as string,
    });
    expect(barrierState(await readBarrier(session))).toBe('lowered');
    expect(await readEpoch(session, SUBSET)).toMatchObject({ fenced: false, epoch });
    await application.query('COMMIT');
  });

  test('where the fence’s locks and an application’s form a cycle, the application wins', async () => {
    // The fence locks child, leaf_1, … in name order; the application holds plain and then wants child.
    await application.query('BEGIN');
    await application.query(`INSERT INTO public.plain (note) VALUES ('holds plain')`);
    const raising = raise();
    // It holds child and waits for plain.
    await until(async () => (await waiting(pair, side)) > 0, { what: 'the fence to wait' });
    await application.query('INSERT INTO public.child VALUES (1)');
    await application.query('COMMIT');
    expect(await raising).toBe(true);
    await lower();
    await application.query('DELETE FROM public.child');
  });

  test('lock_timeout stays below the deadlock_timeout of applications, whatever is configured', async () => {
    const plan = await planBarrier(session, 60_000);
    expect(plan.lockTimeoutMs).toBeLessThan(plan.attemptMs);
    expect(plan.attemptMs).toBeLessThan(1000);
    const own = await session.run(`SELECT setting FROM pg_settings WHERE name = 'deadlock_timeout'`);
    expect(Number(own.rows[0]?.['setting'])).toBeLessThan(plan.lockTimeoutMs);
  });

  test('a fence on its way when its operation was overruled does nothing when it arrives', async () => {
    const stale = key();
    expect(await armFence(session, SUBSET, stale)).toBe(true);
    await lowerFence(await target(), stale);
    expect(await raiseFence(await target(), [{ subset: SUBSET, key: stale }], 'stale')).toBe(false);
    expect(barrierState(await readBarrier(session))).toBe('lowered');
    attempts++;
    expect(await raise()).toBe(true);
    // And nobody lowers the fence of another operation.
    expect(await lowerFence(await target(), stale)).toBe(false);
    expect(barrierState(await readBarrier(session))).toBe('raised');
    await lower();
  });

  test('the mark is a transactional message in the fence’s own transaction', async () => {
    const slot = `s_${endpoint().database}`;
    await application.query(`SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, [slot]);
    await application.query('CREATE PUBLICATION p FOR TABLE public.plain');
    const marked = attempts;
    await raise();
    const read = await application.query<{ xid: string; data: Buffer | string }>(
      `SELECT xid, encode(data, 'escape') AS data FROM pg_logical_slot_get_binary_changes(
         $1, NULL, NULL, 'proto_version', '1', 'publication_names', 'p', 'messages', 'true')`,
      [slot],
    );
    const messages = read.rows.filter((row) => String(row.data).includes('understudy'));
    expect(messages.map((row) => String(row.data)).join()).toContain(`mark-${marked}`);
    await application.query('SELECT pg_drop_replication_slot($1)', [slot]);
    await lower();
  });

  test('installing takes no table from a writer for long, and leaves what is there as it is', async () => {
    await application.query('CREATE TABLE public.late (id int)');
    await application.query('BEGIN');
    await application.query('INSERT INTO public.late VALUES (1)');
    const tables = [...TABLES, { schema: 'public', name: 'late' }];
    const installing = installBarrier(session, tables, false, LIMITS);
    await until(async () => (await waiting(pair, side)) > 0, { what: 'the installation to wait' });
    await application.query('INSERT INTO public.late VALUES (2)');
    await application.query('COMMIT');
    await installing;
    await raise();
    await installBarrier(session, tables, false, LIMITS);
    expect(await code(application.query('INSERT INTO public.late VALUES (3)'))).toBe('UFENC');
    await lower();
  });

  test('removed, nothing of it is left on the tables', async () => {
    expect(await removeBarrier(session, LIMITS)).toBe((TABLES.length + 1) * 2);
    expect(await readBarrier(session)).toEqual([]);
    const left = await application.query(`SELECT FROM pg_trigger WHERE tgname LIKE 'understudy%'`);
    expect(left.rowCount).toBe(0);
  });
});

test('autovacuum at work on a table yields to the fence', async () => {
  await using server = await ownServer({
    version: 14,
    settings: { ...FAST_SETTINGS, autovacuum_naptime: '1s' },
  });
  const at: DatabaseEndpoint = {
    host: server.host,
    port: server.port,
    database: 'postgres',
    user: SUPERUSER,
    password: SUPERUSER_PASSWORD,
    tls: 'disable',
  };
  const connections = new Connections({ source: at, destination: at }, 3000);
  const session = await connections.open('source', 'barrier');
  await session.batch([
    `CREATE TABLE public.busy (id int) WITH (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0,
       autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)`,
  ]);
  await session.run('INSERT INTO public.busy SELECT generate_series(1, 20000)');
  await session.run('DELETE FROM public.busy');
  await createBarrierObjects(session, SUBSET);
  await installBarrier(session, [{ schema: 'public', name: 'busy' }], false, LIMITS);
  const vacuums = async (): Promise<number> =>
    (await session.run(`SELECT FROM pg_stat_progress_vacuum WHERE relid = 'public.busy'::regclass`)).count;
  await until(async () => (await vacuums()) === 1, { what: 'autovacuum' });
  const target: FenceTarget = {
    session,
    plan: await planBarrier(session, 20),
    subset: SUBSET,
    limits: { ...LIMITS, timeoutMs: 2_000 },
  };
  const key = { id: 'op', attempt: 'n', epoch: 0 };
  expect(await armFence(session, SUBSET, key)).toBe(true);
  expect(await raiseFence(target, [{ subset: SUBSET, key }], 'mark')).toBe(true);
  connections.destroy();
});

/** Runs in a transaction that is taken back; returns the SQLSTATE of a failure. */
async function rolledBack(client: pg.Client, sql: string): Promise<string | undefined> {
  await client.query('BEGIN');
  try {
    await client.query(sql);
    return undefined;
  } catch (error) {
    return (error as pg.DatabaseError).code;
  } finally {
    await client.query('ROLLBACK');
  }
}

/** Backends of this database that wait for a lock. */
async function waiting(pair: DatabasePair, side: Side): Promise<number> {
  const client = side === 'source' ? pair.onSource : pair.onDestination;
  const found = await client.query(
    `SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
      WHERE NOT l.granted AND a.datname = current_database()`,
  );
  return found.rowCount ?? 0;
}
