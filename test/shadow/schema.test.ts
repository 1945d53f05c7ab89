import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type pg from 'pg';
import { readFingerprint } from '../../src/shadow/postgres/fingerprint.js';
import type { SchemaPlan } from '../../src/shadow/postgres/schema/plan.js';
import { readSchema } from '../../src/shadow/postgres/schema/read.js';
import { databasePair } from '../support/servers.js';
import {
  buildAll,
  definitionsApart,
  dumpSchema,
  dumpVersion,
  secondDatabase,
  testRoles,
  wholeTortureSchema,
} from './schema-support.js';

describe('the torture schema', () => {
  it('is rebuilt on another PostgreSQL 14 without a difference', async () => {
    await using pair = await databasePair();
    await using roles = await testRoles(pair.onSource);
    await using second = await secondDatabase('source', pair);
    await pair.onSource.query(await wholeTortureSchema(roles));
    const plan = await readSchema(pair.onSource);
    await buildAll(second.client, plan);
    const source = await readFingerprint(pair.onSource);
    const rebuilt = await readFingerprint(second.client);
    expect(definitionsApart(source, rebuilt)).toEqual([]);
    for (const trigger of plan.deferredTriggers) await second.client.query(trigger.sql);
    if (dumpVersion() >= 14) {
      expect(await dumpSchema(second.endpoint)).toEqual(await dumpSchema(pair.source));
    }
  });

  it('is rebuilt on PostgreSQL 18, the servers wording it differently aside', async () => {
    await using pair = await databasePair();
    await using roles = await testRoles(pair.onSource, pair.onDestination);
    await pair.onSource.query(await wholeTortureSchema(roles));
    const plan = await readSchema(pair.onSource, { destinationVersionNum: 180000 });
    await buildAll(pair.onDestination, plan);
    const source = await readFingerprint(pair.onSource);
    const rebuilt = await readFingerprint(pair.onDestination);
    const differing = definitionsApart(source, rebuilt).filter(
      // Extensions come in the server’s own version; 17 gave every owner MAINTAIN; 16 leaves the table's name off the columns of a view of one table.
      ({ object, change }) =>
        change !== 'changed' || !/^(privileges of|view|materialized view|rule|extension) /.test(object),
    );
    expect(differing).toEqual([]);
    expect(await privileges(pair.onDestination)).toEqual(await privileges(pair.onSource));
    expect(await viewWords(pair.onDestination)).toEqual(await viewWords(pair.onSource));
    // No pg_dump here reads both versions: what each would be rebuilt with is compared instead.
    const again = await readSchema(pair.onDestination);
    expect(statementsOf(again)).toEqual(statementsOf(plan));
  });
});

/** Without what 18 words otherwise: names of NOT NULL constraints, the ones that are inherited, views. */
function statementsOf(plan: SchemaPlan): readonly string[] {
  return [...plan.beforeCopy, ...plan.afterCopy]
    .filter((one) => !/^(view|materialized-view)$/.test(one.kind) && !/deferred_trigger/.test(one.sql))
    .map((one) => one.sql.replace(/ CONSTRAINT ("([^"]|"")+"|\w+) NOT NULL/g, ' NOT NULL'))
    .filter((sql) => !/SET NOT NULL$|\) INHERITS \(/.test(sql))
    .sort();
}

it('rebuilds on PostgreSQL 18 what only 18 has', async () => {
  await using pair = await databasePair();
  await using roles = await testRoles(pair.onDestination);
  await using second = await secondDatabase('destination', pair);
  await pair.onDestination.query(await wholeTortureSchema(roles));
  await pair.onDestination.query(`
    CREATE TABLE app.newest (
      id integer CONSTRAINT own_name NOT NULL NO INHERIT, a integer, b integer, c integer,
      doubled integer GENERATED ALWAYS AS (a * 2) VIRTUAL, during app.span, room int4range,
      CONSTRAINT weak CHECK (a > 0) NOT ENFORCED, CONSTRAINT a_there NOT NULL a NO INHERIT,
      CONSTRAINT rooms UNIQUE (room, during WITHOUT OVERLAPS));
    INSERT INTO app.newest (id, a) VALUES (1, 1);
    ALTER TABLE app.newest ADD CONSTRAINT c_there NOT NULL c NOT VALID;
    CREATE TABLE app.numbered (id integer GENERATED ALWAYS AS IDENTITY, at date) PARTITION BY RANGE (at);
    CREATE TABLE app.numbered_1 PARTITION OF app.numbered DEFAULT;
    ALTER TABLE app.event ADD CONSTRAINT late_account FOREIGN KEY (account_id) REFERENCES app.account NOT VALID;
    CREATE FOREIGN DATA WRAPPER none;
    CREATE UNLOGGED SEQUENCE app.unlogged_sequence`);
  const plan = await readSchema(pair.onDestination);
  await buildAll(second.client, plan);
  const built = await readFingerprint(pair.onDestination);
  expect(definitionsApart(built, await readFingerprint(second.client))).toEqual([]);
  expect(await notNullConstraints(second.client)).toEqual(await notNullConstraints(pair.onDestination));
});

/** From 18 they have names, and may be not valid or not inherited. */
async function notNullConstraints(client: pg.Client): Promise<readonly unknown[]> {
  const { rows } = await client.query(
    `SELECT conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated, connoinherit, conislocal FROM pg_constraint
     WHERE contype = 'n' AND conrelid >= 16384 AND conrelid::regclass::text !~ '^understudy' ORDER BY conrelid::regclass::text, conname`,
  );
  return rows;
}

const dataFolder = process.env['UNDERSTUDY_DATA'];
if (dataFolder !== undefined) {
  it('rebuilds Pagila', async () => {
    await using pair = await databasePair();
    await using second = await secondDatabase('destination', pair);
    const sql = await readFile(join(dataFolder, 'schemas', 'pagila-schema.sql'), 'utf8');
    // Its one extension is not packaged here: the column of its type becomes an array of numbers.
    const plain = sql
      .replace(/^\\.*$/gm, '')
      .replace(/^(CREATE|COMMENT ON) EXTENSION .*$/gm, '')
      .replace(/public\.vector\(\d+\)/g, 'real[]')
      .replace(/^CREATE INDEX .* USING hnsw .*$/gm, '');
    await pair.onDestination.query(plain);
    await pair.onDestination.query(`SET search_path = ''`);
    const plan = await readSchema(pair.onDestination);
    expect(plan.unsupported).toEqual([]);
    await buildAll(second.client, plan);
    const built = await readFingerprint(pair.onDestination);
    expect(definitionsApart(built, await readFingerprint(second.client))).toEqual([]);
  });
}

/** Every privilege held on an object, written out or inborn, without what 17 added. */
async function privileges(client: pg.Client): Promise<readonly unknown[]> {
  const { rows } = await client.query(`
    SELECT o.object, a.grantor::regrole, a.grantee::regrole, a.privilege_type, a.is_grantable FROM (
      SELECT oid::regclass::text AS object, COALESCE(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)) AS acl
        FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'S') AND relnamespace::regnamespace::text !~ '^(pg_|information|understudy|extensions)'
      UNION ALL
      SELECT attrelid::regclass || '.' || attname, attacl FROM pg_attribute WHERE attacl IS NOT NULL AND attrelid >= 16384
      UNION ALL
      SELECT oid::regnamespace::text, nspacl FROM pg_namespace WHERE nspname !~ '^(pg_|information|understudy|extensions)'
      UNION ALL
      SELECT oid::regprocedure::text, COALESCE(proacl, acldefault('f', proowner)) FROM pg_proc
        WHERE pronamespace::regnamespace::text !~ '^(pg_|information|understudy|extensions)'
      UNION ALL
      SELECT oid::regtype::text, COALESCE(typacl, acldefault('T', typowner)) FROM pg_type
        WHERE typnamespace::regnamespace::text !~ '^(pg_|information|understudy|extensions)' AND typtype IN ('e', 'd')
    ) o CROSS JOIN LATERAL aclexplode(o.acl) a
    WHERE a.privilege_type <> 'MAINTAIN' ORDER BY 1, 2, 3, 4`);
  return rows;
}

/** The views' definitions without qualification and white space. */
async function viewWords(client: pg.Client): Promise<readonly unknown[]> {
  const { rows } = await client.query<{ name: string; definition: string }>(`
    SELECT oid::regclass::text AS name, pg_get_viewdef(oid) AS definition FROM pg_class
    WHERE relkind IN ('v', 'm') AND relnamespace::regnamespace::text !~ '^(pg_|information)' ORDER BY 1`);
  return rows.map((row) => [row.name, row.definition.replace(/("([^"]|"")+"|\b\w+)\.|\s+/g, '')]);
}
