import { describe, expect, it } from 'vitest';
import type pg from 'pg';
import { UnderstudyError } from '../../src/core/errors.js';
import { diffFingerprints, readFingerprint } from '../../src/shadow/postgres/fingerprint.js';
import { buildSchema, isBuiltByUs } from '../../src/shadow/postgres/schema/build.js';
import type { SchemaPlan, SchemaStatement } from '../../src/shadow/postgres/schema/plan.js';
import { readSchema } from '../../src/shadow/postgres/schema/read.js';
import { readTables } from '../../src/shadow/postgres/tables.js';
import { databasePair } from '../support/servers.js';
import { buildAll, testRoles } from './schema-support.js';

const BEFORE = { phase: 'before-copy', signal: new AbortController().signal } as const;
const AFTER = { phase: 'after-copy', signal: new AbortController().signal } as const;

async function failureOf(work: Promise<unknown>): Promise<UnderstudyError> {
  const error = await work.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof UnderstudyError))
    throw new Error(`expected an UnderstudyError, got ${String(error)}`);
  return error;
}

async function planOf(source: pg.Client, sql: string): Promise<SchemaPlan> {
  await source.query(sql);
  return readSchema(source, { destinationVersionNum: 180000 });
}

async function relations(client: pg.Client): Promise<readonly string[]> {
  const { rows } = await client.query<{ name: string }>(
    `SELECT c.relname AS name FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1`,
  );
  return rows.map((row) => row.name);
}

const SHOP = `
  CREATE TABLE public.customer (id integer PRIMARY KEY, email text UNIQUE);
  CREATE TABLE public.invoice (id integer PRIMARY KEY, customer_id integer REFERENCES public.customer, total numeric);
  CREATE INDEX invoice_total ON public.invoice (total);
  CREATE INDEX invoice_customer ON public.invoice (customer_id);
`;

describe('before the copy', () => {
  it('holds the tables and the keys that rows are found by, and no more', async () => {
    await using pair = await databasePair();
    const plan = await planOf(pair.onSource, SHOP);
    await buildSchema(pair.onDestination, plan.beforeCopy, BEFORE);
    expect(await relations(pair.onDestination)).toEqual([
      'customer',
      'customer_pkey',
      'invoice',
      'invoice_pkey',
    ]);
  });

  it('is all or nothing, and names the statement that failed', async () => {
    await using pair = await databasePair();
    const plan = await planOf(pair.onSource, SHOP);
    const bad: SchemaStatement = {
      kind: 'table',
      object: 'table public.bad',
      sql: 'CREATE TABLE public.bad (a nosuch)',
    };
    const error = await failureOf(buildSchema(pair.onDestination, [...plan.beforeCopy, bad], BEFORE));
    expect(error.code).toBe('schema-build-failed');
    expect(error.details).toMatchObject({ kind: 'table', object: 'table public.bad', sqlState: '42704' });
    expect(error.advice).toBeTruthy();
    expect(await relations(pair.onDestination)).toEqual([]);
    expect(await isBuiltByUs(pair.onDestination)).toBe(false);
    const settings = await pair.onDestination.query(`SHOW check_function_bodies`);
    expect(settings.rows).toEqual([{ check_function_bodies: 'on' }]);
  });

  it('is not begun twice, and refuses tables that somebody else made', async () => {
    await using pair = await databasePair();
    const plan = await planOf(pair.onSource, SHOP);
    await pair.onDestination.query('CREATE TABLE public.invoice (a integer)');
    const error = await failureOf(buildSchema(pair.onDestination, plan.beforeCopy, BEFORE));
    expect(error.code).toBe('preflight-blocked');
    expect(error.details['findings']).toMatchObject([
      { check: 'destination-not-empty', severity: 'blocker' },
    ]);
    await pair.onDestination.query('DROP TABLE public.invoice');
    const first = await buildSchema(pair.onDestination, plan.beforeCopy, BEFORE);
    expect(first.ran).toBe(plan.beforeCopy.length);
    const second = await buildSchema(pair.onDestination, plan.beforeCopy, BEFORE);
    expect(second.ran).toBe(0);
  });

  it('stops between statements when told to, leaving nothing', async () => {
    await using pair = await databasePair();
    const plan = await planOf(pair.onSource, SHOP);
    const controller = new AbortController();
    const reason = new UnderstudyError('cancelled', 'enough');
    const work = buildSchema(pair.onDestination, plan.beforeCopy, {
      phase: 'before-copy',
      signal: controller.signal,
      onProgress: ({ done }) => {
        if (done === 2) controller.abort(reason);
      },
    });
    await expect(work).rejects.toBe(reason);
    expect(await relations(pair.onDestination)).toEqual([]);
  });
});

describe('after the copy', () => {
  async function prepared(source: pg.Client, destination: pg.Client, sql: string): Promise<SchemaPlan> {
    const plan = await planOf(source, sql);
    await buildSchema(destination, plan.beforeCopy, BEFORE);
    return plan;
  }

  it('goes on where it stopped: no index is built twice', async () => {
    await using pair = await databasePair();
    const plan = await prepared(pair.onSource, pair.onDestination, SHOP);
    const broken = plan.afterCopy.map((statement) =>
      statement.object === 'index public.invoice_total'
        ? { ...statement, sql: 'CREATE INDEX x ON public.nosuch (a)' }
        : statement,
    );
    const error = await failureOf(buildSchema(pair.onDestination, broken, AFTER));
    expect(error.details).toMatchObject({ kind: 'index', object: 'index public.invoice_total' });
    const before = await pair.onDestination.query(`SELECT 'public.invoice_customer'::regclass::oid AS oid`);
    const report = await buildSchema(pair.onDestination, plan.afterCopy, AFTER);
    expect(report.ran).toBeLessThan(plan.afterCopy.length);
    const after = await pair.onDestination.query(`SELECT 'public.invoice_customer'::regclass::oid AS oid`);
    expect(after.rows).toEqual(before.rows);
    expect((await buildSchema(pair.onDestination, plan.afterCopy, AFTER)).ran).toBe(0);
  });

  it('adds foreign keys without validating them at once, and names the one that does not hold', async () => {
    await using pair = await databasePair();
    const plan = await prepared(pair.onSource, pair.onDestination, SHOP);
    const add = plan.afterCopy.find((statement) => statement.kind === 'foreign-key');
    expect(add?.sql).toMatch(/NOT VALID$/);
    await pair.onDestination.query(`INSERT INTO public.invoice VALUES (1, 99)`);
    const report = await buildSchema(pair.onDestination, plan.afterCopy, AFTER);
    expect(report.findings).toMatchObject([
      {
        severity: 'blocker',
        check: 'constraint-not-valid',
        object: 'constraint invoice_customer_id_fkey on public.invoice',
      },
    ]);
    await pair.onDestination.query(`INSERT INTO public.customer VALUES (99)`);
    expect((await buildSchema(pair.onDestination, plan.afterCopy, AFTER)).findings).toEqual([]);
    const { rows } = await pair.onDestination.query(
      `SELECT convalidated FROM pg_constraint WHERE contype = 'f'`,
    );
    expect(rows).toEqual([{ convalidated: 't' }]);
  });

  it('copies rows that constraints not yet validated forbid', async () => {
    await using pair = await databasePair();
    const plan = await prepared(
      pair.onSource,
      pair.onDestination,
      `CREATE TABLE public.t (id integer PRIMARY KEY, n integer); INSERT INTO public.t VALUES (1, -1);
       ALTER TABLE public.t ADD CONSTRAINT positive CHECK (n > 0) NOT VALID`,
    );
    await pair.onDestination.query('INSERT INTO public.t VALUES (1, -1)');
    await buildSchema(pair.onDestination, plan.afterCopy, AFTER);
    const { rows } = await pair.onDestination.query(
      `SELECT conname, convalidated FROM pg_constraint WHERE contype = 'c' AND conrelid = 'public.t'::regclass`,
    );
    expect(rows).toEqual([{ conname: 'positive', convalidated: 'f' }]);
  });

  it('leaves out what names a role that the destination lacks, and says so', async () => {
    await using pair = await databasePair();
    await using roles = await testRoles(pair.onSource);
    const plan = await prepared(
      pair.onSource,
      pair.onDestination,
      roles.fill(
        `${SHOP} ALTER TABLE public.customer OWNER TO {{owner}}; GRANT SELECT ON public.invoice TO {{reader}}`,
      ),
    );
    expect(plan.roles).toEqual(expect.arrayContaining([roles.owner, roles.reader]));
    const { skipped } = await buildSchema(pair.onDestination, plan.afterCopy, AFTER);
    expect(skipped.map(({ kind, object }) => `${kind} ${object}`).sort()).toEqual([
      'grant table public.invoice',
      'owner table public.customer',
    ]);
  });

  it('keeps triggers that fire in replica role from acting on the shadow’s writes until they are given back', async () => {
    await using pair = await databasePair();
    const plan = await prepared(
      pair.onSource,
      pair.onDestination,
      `CREATE TABLE public.t (id integer PRIMARY KEY); CREATE TABLE public.log (id serial PRIMARY KEY);
       CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.log DEFAULT VALUES; RETURN NEW; END';
       CREATE TRIGGER always AFTER INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.f();
       ALTER TABLE public.t ENABLE ALWAYS TRIGGER always`,
    );
    const client = pair.onDestination;
    await buildSchema(client, plan.afterCopy, AFTER);
    const logged = async (): Promise<number | null> => {
      await client.query(
        'SET session_replication_role = replica; INSERT INTO public.t SELECT count(*) FROM public.t',
      );
      return (await client.query('SELECT FROM public.log')).rowCount;
    };
    expect(await logged()).toBe(0);
    const built = await readFingerprint(client);
    expect(plan.deferredTriggers).toMatchObject([
      { table: { schema: 'public', name: 't' }, name: 'always', state: 'always' },
    ]);
    const { rows } = await client.query<{ enable_sql: string; disable_sql: string }>(
      'SELECT enable_sql, disable_sql FROM understudy.deferred_trigger',
    );
    expect(rows.map((row) => row.enable_sql)).toEqual(plan.deferredTriggers.map((trigger) => trigger.sql));
    for (const row of rows) await client.query(row.enable_sql);
    expect(await logged()).toBe(1);
    for (const row of rows) await client.query(row.disable_sql);
    expect(await logged()).toBe(1);
    // Giving it back is Understudy's own doing: no change that a rollback would stumble over.
    expect(diffFingerprints(built, await readFingerprint(client))).toEqual([]);
  });
});

describe('what can’t be carried', () => {
  it('is named, together with what needs it, and the rest is built', async () => {
    await using pair = await databasePair();
    const plan = await planOf(
      pair.onSource,
      `${SHOP}
       CREATE TYPE public.shell;
       CREATE FUNCTION public.shell_in(cstring) RETURNS public.shell LANGUAGE internal IMMUTABLE STRICT AS 'int4in';
       CREATE FUNCTION public.shell_out(public.shell) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'int4out';
       CREATE TYPE public.shell (INPUT = public.shell_in, OUTPUT = public.shell_out, LIKE = integer);
       CREATE TABLE public.uses_it (id integer PRIMARY KEY, s public.shell);
       CREATE VIEW public.sees_it AS SELECT s FROM public.uses_it;
       CREATE FUNCTION public.on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
       CREATE EVENT TRIGGER watcher ON ddl_command_end EXECUTE FUNCTION public.on_ddl();
       GRANT SELECT ON public.uses_it TO PUBLIC;`,
    );
    const named = plan.unsupported.map(({ severity, object }) => `${severity} ${object}`);
    expect(named).toEqual(
      expect.arrayContaining([
        'warning type public.shell',
        'warning event trigger watcher',
        'blocker table public.uses_it',
        'warning view public.sees_it',
      ]),
    );
    await buildAll(pair.onDestination, plan);
    const built = (await readTables(pair.onDestination)).map((table) => table.name);
    expect(built).toEqual(['customer', 'invoice']);
  });
});

it('refuses a rule on updates where the shadow upserts, as the server does', async () => {
  await using pair = await databasePair();
  const plan = await planOf(
    pair.onSource,
    `${SHOP} CREATE TABLE public.keyless (a integer); CREATE RULE fine AS ON UPDATE TO public.keyless DO ALSO NOTHING;
     CREATE RULE also AS ON UPDATE TO public.customer DO ALSO NOTHING;
     CREATE RULE deletes AS ON DELETE TO public.customer DO ALSO NOTHING`,
  );
  expect(plan.unsupported).toMatchObject([
    { severity: 'blocker', check: 'update-rule', object: 'rule also on public.customer' },
  ]);
  await pair.onSource.query('SET session_replication_role = replica');
  const upsert = `INSERT INTO public.customer VALUES (1, 'a') ON CONFLICT (id) DO UPDATE SET email = excluded.email`;
  await expect(pair.onSource.query(upsert)).rejects.toThrow('rules');
  await pair.onSource.query(/DROP RULE[^;]*/.exec(plan.unsupported[0]?.advice ?? '')?.[0] ?? '');
  await pair.onSource.query(upsert);
});

describe('tables', () => {
  it('are read with their keys, kinds and columns; not those of extensions, of Understudy or of sessions', async () => {
    await using pair = await databasePair();
    const client = pair.onSource;
    await client.query(`
      CREATE DOMAIN public.d1 AS text; CREATE DOMAIN public.d2 AS public.d1; CREATE TYPE public.e AS ENUM ('a');
      CREATE DOMAIN public.d3 AS public.e;
      CREATE TABLE public.a (b integer NOT NULL, "A b" public.d2, c integer GENERATED ALWAYS AS (b * 2) STORED,
        d integer GENERATED ALWAYS AS IDENTITY, e public.e[], f public.d3, gone integer, PRIMARY KEY (d, b) INCLUDE (c));
      ALTER TABLE public.a DROP COLUMN gone;
      CREATE TABLE public.by_index (x integer NOT NULL, y integer PRIMARY KEY);
      CREATE UNIQUE INDEX bx ON public.by_index (x); ALTER TABLE public.by_index REPLICA IDENTITY USING INDEX bx;
      CREATE TABLE public.deferrable (x integer PRIMARY KEY DEFERRABLE);
      CREATE UNLOGGED TABLE public.fast (x integer);
      CREATE TABLE public.root (x integer) PARTITION BY LIST (x);
      CREATE TABLE public.sub PARTITION OF public.root DEFAULT PARTITION BY LIST (x);
      CREATE TABLE public.leaf PARTITION OF public.sub DEFAULT;
      CREATE TABLE public.child () INHERITS (public.by_index);
      CREATE SCHEMA understudy; CREATE TABLE understudy.own (a integer); CREATE TEMP TABLE session_only (a integer);
      CREATE VIEW public.v AS SELECT 1;`);
    const tables = await readTables(client);
    const summary = tables.map(({ name, kind, key, replicaIdentity, unlogged }) => [
      name,
      kind,
      key,
      replicaIdentity,
      unlogged,
    ]);
    expect(summary).toEqual([
      ['a', 'ordinary', ['d', 'b'], 'd', false],
      ['by_index', 'ordinary', ['x'], 'i', false],
      ['child', 'ordinary', null, 'd', false],
      ['deferrable', 'ordinary', null, 'd', false],
      ['fast', 'ordinary', null, 'd', true],
      ['leaf', 'partition', null, 'd', false],
      ['root', 'partitioned', null, 'd', false],
      ['sub', 'partitioned', null, 'd', false],
    ]);
    expect(tables[0]?.columns).toEqual([
      {
        name: 'b',
        type: 'integer',
        typeKind: 'b',
        notNull: true,
        generated: false,
        identity: null,
        collatable: false,
      },
      {
        name: 'A b',
        type: 'public.d2',
        typeKind: 'b',
        notNull: false,
        generated: false,
        identity: null,
        collatable: true,
      },
      {
        name: 'c',
        type: 'integer',
        typeKind: 'b',
        notNull: false,
        generated: true,
        identity: null,
        collatable: false,
      },
      {
        name: 'd',
        type: 'integer',
        typeKind: 'b',
        notNull: true,
        generated: false,
        identity: 'always',
        collatable: false,
      },
      {
        name: 'e',
        type: 'public.e[]',
        typeKind: 'b',
        notNull: false,
        generated: false,
        identity: null,
        collatable: false,
      },
      {
        name: 'f',
        type: 'public.d3',
        typeKind: 'e',
        notNull: false,
        generated: false,
        identity: null,
        collatable: false,
      },
    ]);
  });
});
