import type pg from 'pg';
import { describe, expect, it } from 'vitest';
import { connectControl } from '../../src/core/postgres.js';
import { inspectSource } from '../../src/shadow/postgres/preflight.js';
import { readSessionHints } from '../../src/shadow/postgres/preflight-sessions.js';
import { buildSchema } from '../../src/shadow/postgres/schema/build.js';
import { readSchema } from '../../src/shadow/postgres/schema/read.js';
import { databasePair, until } from '../support/servers.js';
import {
  CHECK,
  CUTOVER,
  appSession,
  findingOf,
  obeyOnSource,
  pairFindings,
  statementOf,
  uniqueName,
} from './preflight-support.js';

it('finds nothing in the way of two plain databases', async () => {
  await using pair = await databasePair();
  await pair.onSource.query('CREATE TABLE public.t (id integer PRIMARY KEY)');
  for (const settings of [CHECK, CUTOVER]) {
    const findings = await pairFindings(pair, settings);
    expect(findings.filter((finding) => finding.severity !== 'info')).toEqual([]);
  }
});

describe('tables', () => {
  it('without a key or identity are named, and what the advice says mends it', async () => {
    await using pair = await databasePair();
    const client = pair.onSource;
    await client.query(`
      CREATE TABLE public.keyless (a integer);
      CREATE TABLE public.deferrable (a integer PRIMARY KEY DEFERRABLE);
      CREATE TABLE public.nothing (a integer PRIMARY KEY);
      ALTER TABLE public.nothing REPLICA IDENTITY NOTHING;
      CREATE UNLOGGED TABLE public.unlogged (a integer PRIMARY KEY);
      CREATE TABLE public.root (a integer) PARTITION BY LIST (a);
      CREATE TABLE public.leaf PARTITION OF public.root DEFAULT;`);
    const findings = await inspectSource(client, CHECK);
    expect(findingOf(findings, 'table-without-key', 'table public.root')).toBeUndefined();
    expect(findingOf(findings, 'unlogged-table')?.severity).toBe('warning');
    await obeyOnSource(client, 'table-without-key', 'table public.keyless');
    await obeyOnSource(client, 'table-without-key', 'table public.deferrable');
    await obeyOnSource(client, 'table-without-key', 'table public.leaf');
    await obeyOnSource(client, 'replica-identity-nothing', 'table public.nothing');
    await obeyOnSource(client, 'unlogged-table', 'table public.unlogged');
  });

  it('under row security of an account that is not exempt block', async () => {
    await using pair = await databasePair();
    const name = uniqueName('rls');
    await pair.onSource.query(`
      CREATE ROLE ${name} LOGIN PASSWORD 'x' REPLICATION;
      CREATE TABLE public.t (id integer PRIMARY KEY);
      ALTER TABLE public.t ENABLE ROW LEVEL SECURITY;
      GRANT SELECT ON public.t TO ${name};`);
    const weak = await connectControl(
      'source',
      // row_security=off refuses what it would hide, so the check must not depend on reading rows.
      { ...pair.source, user: name, password: 'x' },
      { purpose: 'test' },
    );
    const before = await inspectSource(weak, CHECK);
    const finding = findingOf(before, 'row-security', 'table public.t');
    expect(finding?.severity).toBe('blocker');
    await pair.onSource.query(statementOf(finding));
    expect(findingOf(await inspectSource(weak, CHECK), 'row-security')).toBeUndefined();
    expect(findingOf(before, 'privilege-replica-role')?.severity).toBe('warning');
    expect(findingOf(before, 'privilege-ownership')?.object).toBe('public.t');
    const create = findingOf(before, 'privilege-create');
    await pair.onSource.query(statementOf(create));
    expect(findingOf(await inspectSource(weak, CHECK), 'privilege-create')).toBeUndefined();
    await weak.end();
    await pair.onSource.query(`DROP OWNED BY ${name}; DROP ROLE ${name}`);
  });
});

it('names what the log does not carry, what fires twice and what stays behind', async () => {
  await using pair = await databasePair();
  const client = pair.onSource;
  await client.query(`
    CREATE TABLE public.t (id integer PRIMARY KEY, n integer);
    CREATE MATERIALIZED VIEW public.m AS SELECT 1 AS one;
    SELECT lo_create(0);
    CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    CREATE TRIGGER always AFTER INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.f();
    ALTER TABLE public.t ENABLE ALWAYS TRIGGER always;
    CREATE RULE replica AS ON UPDATE TO public.t DO ALSO NOTHING;
    ALTER TABLE public.t ENABLE REPLICA RULE replica;
    CREATE SEQUENCE public.cycling MAXVALUE 9 CYCLE;
    ALTER TABLE public.t ADD CONSTRAINT late CHECK (n > 0) NOT VALID;
    CREATE TYPE public.mood AS ENUM ('a');
    CREATE TABLE public.keyless (a integer);
    CREATE FUNCTION public.in_c(text, text) RETURNS boolean LANGUAGE c AS '$libdir/citext', 'citext_eq';
    CREATE FOREIGN DATA WRAPPER wrapper;
    CREATE SERVER far FOREIGN DATA WRAPPER wrapper;
    CREATE USER MAPPING FOR CURRENT_USER SERVER far OPTIONS (password 'hidden');
    CREATE PUBLICATION everything FOR ALL TABLES;
    CREATE PUBLICATION understudy_test_fwd FOR TABLE public.t;
    CREATE SUBSCRIPTION ${uniqueName('sub')} CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect = false);`);
  for (const slot of [uniqueName('other'), `understudy_test_${uniqueName('x')}`])
    await client.query(`SELECT pg_create_logical_replication_slot('${slot}', 'pgoutput')`);
  const findings = await inspectSource(client, CHECK);
  const severities = Object.fromEntries(findings.map((finding) => [finding.check, finding.severity]));
  expect(severities).toMatchObject({
    'materialized-view': 'info',
    'large-objects': 'blocker',
    'trigger-in-replica-role': 'warning',
    'rule-in-replica-role': 'warning',
    'sequence-cycle': 'info',
    'constraint-not-valid': 'info',
    'publication-all-tables': 'warning',
    'foreign-slot': 'warning',
    subscription: 'warning',
    'type-oids': 'info',
    'c-function': 'warning',
    'user-mapping': 'info',
  });
  expect(JSON.stringify(findings)).not.toContain('hidden');
  expect(findings.filter((finding) => finding.check.startsWith('foreign-slot'))).toHaveLength(1);
  expect(JSON.stringify(findings)).not.toContain('understudy_test_');
  await obeyOnSource(client, 'trigger-in-replica-role', 'trigger always on public.t');
  await obeyOnSource(client, 'rule-in-replica-role', 'rule replica on public.t');
  await obeyOnSource(client, 'constraint-not-valid', 'constraint late on public.t');
  // A worker that runs writes past the fence. The catalog is changed and never committed: none is to be started.
  await client.query('BEGIN; UPDATE pg_subscription SET subenabled = true');
  expect(findingOf(await inspectSource(client, CHECK), 'subscription')?.severity).toBe('blocker');
  await client.query('ROLLBACK');
  const { rows } = await client.query<{ name: string }>(
    'SELECT s.subname AS name FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = current_database()',
  );
  for (const { name } of rows)
    await client
      .query(`ALTER SUBSCRIPTION ${name} SET (slot_name = NONE)`)
      .then(() => client.query(`DROP SUBSCRIPTION ${name}`));
});

it('names the vacuum and the index build that the fence would wait for', async () => {
  await using pair = await databasePair();
  const client = pair.onSource;
  await client.query(`
    CREATE TABLE public.indexed (id integer PRIMARY KEY);
    CREATE TABLE public.frozen (id integer) WITH (autovacuum_enabled = false);
    INSERT INTO public.frozen SELECT generate_series(1, 100000)`);
  const holder = await appSession('source', pair.source);
  await holder.query(`BEGIN; INSERT INTO public.indexed VALUES (1)`);
  const builder = await appSession('source', pair.source);
  const vacuumer = await appSession('source', pair.source);
  // It sleeps after every page, so it lasts until it is cancelled.
  await vacuumer.query(`SET vacuum_cost_delay = '100ms'; SET vacuum_cost_limit = 1`);
  const building = builder
    .query('CREATE INDEX CONCURRENTLY slow ON public.indexed (id)')
    .catch(() => undefined);
  const vacuuming = vacuumer.query('VACUUM public.frozen').catch(() => undefined);
  await until(async () => {
    const checks = (await inspectSource(client, CUTOVER)).map((finding) => finding.check);
    return checks.includes('running-vacuum') && checks.includes('running-index-build');
  });
  const findings = await inspectSource(client, CUTOVER);
  expect(findingOf(findings, 'running-vacuum', 'public.frozen')?.severity).toBe('blocker');
  const index = findingOf(findings, 'running-index-build', 'public.indexed');
  expect(index?.severity).toBe('blocker');
  expect(findingOf(await inspectSource(client, CHECK), 'running-vacuum')?.severity).toBe('info');
  await client.query(statementOf(index));
  await building;
  expect(findingOf(await inspectSource(client, CUTOVER), 'running-index-build')).toBeUndefined();
  await client.query(
    `SELECT pg_cancel_backend(pid) FROM pg_stat_progress_vacuum WHERE relid = 'public.frozen'::regclass`,
  );
  await vacuuming;
  await holder.query('ROLLBACK');
  for (const session of [holder, builder, vacuumer]) await session.end();
});

it('counts the room for the sessions that would move: in all, of the database, of a role', async () => {
  await using pair = await databasePair();
  const name = uniqueName('shop');
  for (const client of [pair.onSource, pair.onDestination])
    await client.query(`CREATE ROLE ${name} LOGIN PASSWORD 'x'`);
  await pair.onDestination.query(`ALTER ROLE ${name} CONNECTION LIMIT 1`);
  await pair.onDestination.query(`ALTER DATABASE ${pair.destination.database} CONNECTION LIMIT 2`);
  const endpoint = { ...pair.source, user: name, password: 'x' };
  const sessions = [await appSession('source', endpoint), await appSession('source', endpoint)];
  const before = await pairFindings(pair, CUTOVER);
  const role = findingOf(before, 'role-connection-limit', `role ${name}`);
  const database = findingOf(before, 'database-connection-limit');
  expect([role?.severity, database?.severity]).toEqual(['blocker', 'blocker']);
  expect(findingOf(await pairFindings(pair, CHECK), 'role-connection-limit')?.severity).toBe('warning');
  for (const finding of [role, database]) await pair.onDestination.query(statementOf(finding));
  const after = await pairFindings(pair, CUTOVER);
  expect(after.filter((finding) => finding.check.endsWith('connection-limit'))).toEqual([]);
  const full = await pairFindings(pair, { ...CUTOVER, connectionReserve: 10_000 });
  expect(findingOf(full, 'connections')).toMatchObject({ severity: 'blocker', side: 'destination' });
  for (const session of sessions) await session.end();
  for (const client of [pair.onSource, pair.onDestination]) await client.query(`DROP ROLE ${name}`);
});

it('compares what sessions begin with, though its own connection pins some of it', async () => {
  await using pair = await databasePair();
  const name = pair.source.database;
  await pair.onSource.query(`
    ALTER DATABASE ${name} SET timezone = 'Asia/Tokyo';
    ALTER DATABASE ${name} SET search_path = 'app', 'public';
    ALTER DATABASE ${name} SET force_parallel_mode = on;
    ALTER DATABASE ${name} SET "app.tenant" = 'secret value'`);
  // Before the schema is built, what the database sets is still to be carried.
  const before = await pairFindings(pair);
  expect(findingOf(before, 'setting-differs')).toBeUndefined();
  expect(findingOf(before, 'setting-unknown', 'force_parallel_mode')?.severity).toBe('warning');
  await pair.onDestination.query(
    `CREATE SCHEMA understudy; CREATE TABLE understudy.shadow_schema AS SELECT true AS one`,
  );
  const after = await pairFindings(pair, CUTOVER);
  expect(findingOf(after, 'setting-differs', 'timezone')?.severity).toBe('warning');
  expect(findingOf(after, 'setting-differs', 'search_path')?.message).toContain('app');
  expect(JSON.stringify(after)).not.toContain('secret value');
});

it('compares the databases: owner, encoding, locale, and refuses one that is not empty or the same', async () => {
  await using pair = await databasePair();
  const [latin, builtin] = [uniqueName('latin'), uniqueName('builtin')];
  const { onSource, onDestination } = pair;
  await onDestination.query(`CREATE DATABASE ${latin} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'`);
  await onDestination.query(
    `CREATE DATABASE ${builtin} TEMPLATE template0 LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'`,
  );
  const findingsFor = async (database: string) => {
    const other = await connectControl('destination', { ...pair.destination, database }, { purpose: 'test' });
    const findings = await pairFindings({ ...pair, onDestination: other });
    await other.end();
    return findings;
  };
  expect(findingOf(await findingsFor(latin), 'encoding-differs')?.severity).toBe('blocker');
  expect(findingOf(await findingsFor(builtin), 'locale-differs')?.severity).toBe('warning');
  for (const database of [latin, builtin]) await onDestination.query(`DROP DATABASE ${database}`);
  expect(findingOf(await pairFindings({ ...pair, onDestination: onSource }), 'same-database')).toMatchObject({
    severity: 'blocker',
  });
  const backwards = { ...pair, onSource: onDestination, onDestination: onSource };
  expect(findingOf(await pairFindings(backwards), 'version-order')?.severity).toBe('blocker');
  for (const client of [onSource, onDestination])
    await client.query('CREATE TABLE public."Taken" (id integer PRIMARY KEY)');
  const taken = findingOf(await pairFindings(pair), 'destination-not-empty', 'public."Taken"');
  expect(taken?.severity).toBe('blocker');
  await onDestination.query(statementOf(taken));
  expect(findingOf(await pairFindings(pair), 'destination-not-empty')).toBeUndefined();
});

it('takes no table for a stranger’s that a sidecar builds while it looks', async () => {
  await using pair = await databasePair();
  await pair.onSource.query('CREATE TABLE public.young (id integer PRIMARY KEY)');
  const { beforeCopy } = await readSchema(pair.onSource);
  const builder = await connectControl('destination', pair.destination, { purpose: 'test' });
  let built: Promise<unknown> | undefined;
  // The schema is there right after the inspection has asked for the first time whether it is.
  const watched = Object.create(pair.onDestination, {
    query: {
      value: async (sql: string) => {
        const answer = await pair.onDestination.query(sql);
        if (sql.includes('understudy.shadow_schema')) {
          await (built ??= buildSchema(builder, beforeCopy, {
            phase: 'before-copy',
            signal: new AbortController().signal,
          }));
        }
        return answer;
      },
    },
  }) as pg.Client;
  const findings = await pairFindings({ ...pair, onDestination: watched });
  await builder.end();
  expect(built).toBeDefined();
  expect(findingOf(findings, 'destination-not-empty')).toBeUndefined();
});

it('finds the session state that only the application’s own code names', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(`
    CREATE SCHEMA app;
    CREATE TABLE app.t (id integer PRIMARY KEY, tenant text DEFAULT current_setting('hint.defaulted', true));
    ALTER TABLE app.t ENABLE ROW LEVEL SECURITY;
    CREATE POLICY p ON app.t USING (tenant = current_setting('Hint.Tenant'));
    CREATE VIEW app.v AS SELECT current_setting('hint.viewed', true) AS v;
    CREATE FUNCTION app.setter(t text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
      PERFORM set_config('hint.set', (SELECT t || ',' || ')'), false); END $$;
    CREATE FUNCTION app.local(t text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
      -- SET hint.commented = 1; LISTEN nothing
      PERFORM set_config('hint.local', t, true);
      UPDATE app.t SET tenant = 'x'; SET LOCAL hint.also_local = 'y'; SET CONSTRAINTS ALL DEFERRED; END $$;
    CREATE FUNCTION app.dynamic(n text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
      EXECUTE 'SET hint.executed TO ''1'''; END $$;
    CREATE FUNCTION app.listens() RETURNS void LANGUAGE plpgsql AS $$ BEGIN LISTEN jobs; END $$;
    CREATE FUNCTION app.locks() RETURNS void LANGUAGE sql AS 'SELECT pg_advisory_lock(1)';
    CREATE FUNCTION app.locks_well() RETURNS void LANGUAGE sql AS 'SELECT pg_advisory_xact_lock(1)';
    CREATE PROCEDURE app.temps() LANGUAGE plpgsql AS $$ BEGIN CREATE TEMP TABLE x (a integer); END $$;
    CREATE FUNCTION app.configured() RETURNS integer LANGUAGE sql SET hint.scoped = 'z' AS 'SELECT 1';
    CREATE FUNCTION app.quiet(a integer) RETURNS integer LANGUAGE sql AS 'SELECT a';
    CREATE FUNCTION app.named(n text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
      EXECUTE format('SET %I = %L', n, 'x'); END $$;
    CREATE FUNCTION app.anything(s text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE s; END $$;
    CREATE FUNCTION app.routes(s text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
      EXECUTE format('INSERT INTO %I VALUES ($1)', s) USING 1; END $$;
    CREATE FUNCTION app.enters() RETURNS integer LANGUAGE plpgsql AS $$ BEGIN PERFORM app.setter('7'); RETURN 1; END $$;
    CREATE FUNCTION app.enters_far() RETURNS integer LANGUAGE sql AS 'SELECT app.enters()';
    CREATE FUNCTION app.talks() RETURNS text LANGUAGE sql AS $$ SELECT 'setter'::text $$;
    CREATE FUNCTION app.on_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM app.enters(); RETURN NEW; END $$;
    CREATE TABLE app.parted (id integer) PARTITION BY LIST (id);
    CREATE TABLE app.part PARTITION OF app.parted FOR VALUES IN (1);
    CREATE TRIGGER w BEFORE INSERT ON app.part FOR EACH ROW EXECUTE FUNCTION app.on_write();
    CREATE TABLE app.filled (id integer DEFAULT app.enters_far());
    CREATE VIEW app."Over-View" AS SELECT app.enters() AS e;
    CREATE VIEW app.over_over AS SELECT * FROM app."Over-View";
    CREATE TABLE app.ruled (id integer);
    CREATE RULE r AS ON INSERT TO app.ruled DO ALSO INSERT INTO app.parted VALUES (1);`);
  await pair.onSource.query(`ALTER DATABASE ${pair.source.database} SET hint.stored = 'x'`);
  const hints = await readSessionHints(pair.onSource);
  // The settings of roles are the whole server's, and other tests have theirs.
  expect(hints.dottedSettings.filter((name) => name.startsWith('hint.'))).toEqual([
    'hint.also_local',
    'hint.defaulted',
    'hint.executed',
    'hint.local',
    'hint.scoped',
    'hint.set',
    'hint.stored',
    'hint.tenant',
    'hint.viewed',
  ]);
  expect(hints.statefulFunctions).toEqual([
    'app.anything(s text)',
    'app.dynamic(n text)',
    'app.listens()',
    'app.locks()',
    'app.named(n text)',
    'app.setter(t text)',
    'app.temps()',
  ]);
  // By which names a statement may come to run one of them.
  expect(hints.statefulNames).toEqual([
    'anything', 'dynamic', 'enters', 'enters_far', 'filled', 'listens', 'locks', 'named', 'on_write', 'over-view',
    'over_over', 'part', 'parted', 'ruled', 'setter', 'temps',
  ]); // prettier-ignore
  // What no name shows, every name may be.
  await pair.onSource.query(`
    CREATE FUNCTION app.adds(a integer, b integer) RETURNS integer LANGUAGE sql AS 'SELECT app.enters()';
    CREATE OPERATOR app.### (FUNCTION = app.adds, LEFTARG = integer, RIGHTARG = integer);`);
  expect((await readSessionHints(pair.onSource)).statefulNames).toEqual(['*']);
});
