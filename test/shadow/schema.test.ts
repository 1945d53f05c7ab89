import { randomBytes } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import type pg from 'pg';
import { connectControl, quoteIdent } from '../../src/core/postgres.js';
import type { DatabaseEndpoint } from '../../src/core/ports.js';
import { diffFingerprints, readFingerprint } from '../../src/shadow/postgres/fingerprint.js';
import { readSchema } from '../../src/shadow/postgres/schema/read.js';
import { databasePair, type DatabasePair } from '../support/servers.js';
import { buildAll, dumpSchema, dumpVersion, testRoles, tortureSchema } from './schema-support.js';

interface SecondDatabase extends AsyncDisposable {
  readonly endpoint: DatabaseEndpoint;
  readonly client: pg.Client;
}

/** Another database on the pair's source server. */
async function secondDatabase(pair: DatabasePair): Promise<SecondDatabase> {
  const name = `t2_${randomBytes(5).toString('hex')}`;
  await pair.onSource.query(`CREATE DATABASE ${quoteIdent(name)}`);
  const endpoint = { ...pair.source, database: name };
  const client = await connectControl('destination', endpoint, { purpose: 'test' });
  return {
    endpoint,
    client,
    async [Symbol.asyncDispose]() {
      await client.end();
      await pair.onSource.query(`DROP DATABASE ${quoteIdent(name)} WITH (FORCE)`);
    },
  };
}

describe('the torture schema', () => {
  it('is rebuilt on another PostgreSQL 14 without a difference', async () => {
    await using pair = await databasePair();
    await using roles = await testRoles(pair.onSource);
    await using second = await secondDatabase(pair);
    await pair.onSource.query(await tortureSchema(roles));
    const plan = await readSchema(pair.onSource);
    await buildAll(second.client, plan);
    const source = await readFingerprint(pair.onSource);
    const rebuilt = await readFingerprint(second.client);
    expect(diffFingerprints(source, rebuilt)).toEqual([]);
    for (const trigger of plan.deferredTriggers) await second.client.query(trigger.sql);
    if (dumpVersion() >= 14) {
      expect(await dumpSchema(second.endpoint)).toEqual(await dumpSchema(pair.source));
    }
  });

  it('is rebuilt on PostgreSQL 18, the servers wording it differently aside', async () => {
    await using pair = await databasePair();
    await using roles = await testRoles(pair.onSource, pair.onDestination);
    await pair.onSource.query(await tortureSchema(roles));
    const plan = await readSchema(pair.onSource, { destinationVersionNum: 180000 });
    await buildAll(pair.onDestination, plan);
    const source = await readFingerprint(pair.onSource);
    const rebuilt = await readFingerprint(pair.onDestination);
    const differing = diffFingerprints(source, rebuilt).filter(
      // 17 gave every owner MAINTAIN; 16 leaves the table's name off the columns of a view of one table.
      ({ object, change }) =>
        change !== 'changed' || !/^(privileges of|view|materialized view|rule) /.test(object),
    );
    expect(differing).toEqual([]);
    expect(await privileges(pair.onDestination)).toEqual(await privileges(pair.onSource));
    expect(await viewWords(pair.onDestination)).toEqual(await viewWords(pair.onSource));
  });
});

/** Every privilege held on an object, written out or inborn, without what 17 added. */
async function privileges(client: pg.Client): Promise<readonly unknown[]> {
  const { rows } = await client.query(`
    SELECT o.object, a.grantor::regrole, a.grantee::regrole, a.privilege_type, a.is_grantable FROM (
      SELECT oid::regclass::text AS object, COALESCE(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)) AS acl
        FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'S') AND relnamespace::regnamespace::text !~ '^(pg_|information|understudy)'
      UNION ALL
      SELECT attrelid::regclass || '.' || attname, attacl FROM pg_attribute WHERE attacl IS NOT NULL AND attrelid >= 16384
      UNION ALL
      SELECT oid::regnamespace::text, nspacl FROM pg_namespace WHERE nspname !~ '^(pg_|information|understudy)'
      UNION ALL
      SELECT oid::regprocedure::text, COALESCE(proacl, acldefault('f', proowner)) FROM pg_proc
        WHERE pronamespace::regnamespace::text !~ '^(pg_|information|understudy)'
      UNION ALL
      SELECT oid::regtype::text, COALESCE(typacl, acldefault('T', typowner)) FROM pg_type
        WHERE typnamespace::regnamespace::text !~ '^(pg_|information|understudy)' AND typtype IN ('e', 'd')
    ) o CROSS JOIN LATERAL aclexplode(o.acl) a
    WHERE a.privilege_type <> 'MAINTAIN' ORDER BY 1, 2, 3, 4`);
  return rows;
}

/** The views' definitions without qualification and white space. */
async function viewWords(client: pg.Client): Promise<readonly unknown[]> {
  const { rows } = await client.query<{ name: string; definition: string }>(`
    SELECT oid::regclass::text AS name, pg_get_viewdef(oid) AS definition FROM pg_class
    WHERE relkind IN ('v', 'm') AND relnamespace::regnamespace::text !~ '^(pg_|information)' ORDER BY 1`);
  return rows.map((row) => [row.name, row.definition.replace(/\b\w+\.|\s+/g, '')]);
}
