/** What the schema tests share: the torture schema under roles of its own, builds, and pg_dump where it is there. */
import { execFile, execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { promisify } from 'node:util';
import type pg from 'pg';
import { tellsOfRows } from '../../src/core/fingerprint-entries.js';
import type { CatalogFingerprint, DatabaseEndpoint, Side } from '../../src/core/ports.js';
import { connectControl, quoteIdent } from '../../src/core/postgres.js';
import { diffFingerprints, type FingerprintDifference } from '../../src/shadow/postgres/fingerprint.js';
import type { SchemaPlan } from '../../src/shadow/postgres/schema/plan.js';
import { buildSchema } from '../../src/shadow/postgres/schema/build.js';
import { createDatabaseSql, type DatabasePair } from '../support/servers.js';

/** Of two servers: which rows a table has is no question of its definition. */
export function definitionsApart(
  one: CatalogFingerprint,
  other: CatalogFingerprint,
): readonly FingerprintDifference[] {
  return diffFingerprints(one, other).filter(({ object }) => !tellsOfRows(object));
}

/** Roles belong to the server, not the database: each test has its own, on every server it uses. */
export interface TestRoles extends AsyncDisposable {
  readonly owner: string;
  readonly reader: string;
  readonly writer: string;
  fill(sql: string): string;
}

export async function testRoles(...clients: readonly pg.Client[]): Promise<TestRoles> {
  const suffix = randomBytes(4).toString('hex');
  const roles = { owner: `o_${suffix}`, reader: `r_${suffix}`, writer: `w_${suffix}` };
  const names = Object.values(roles).map(quoteIdent);
  for (const client of clients) {
    for (const name of names) await client.query(`CREATE ROLE ${name}`);
  }
  return {
    ...roles,
    fill: (sql) =>
      sql.replace(/\{\{(owner|reader|writer)\}\}/g, (_, name: 'owner' | 'reader' | 'writer') => roles[name]),
    async [Symbol.asyncDispose]() {
      for (const client of clients) {
        // One by one: PostgreSQL 14 stumbles over default privileges between roles that it drops together.
        for (const name of names) await client.query(`DROP OWNED BY ${name} CASCADE`);
        await client.query(`DROP ROLE ${names.join(', ')}`);
      }
    },
  };
}

async function fixture(name: string): Promise<string> {
  return await readFile(new URL(`../fixtures/${name}`, import.meta.url).pathname, 'utf8');
}

export async function tortureSchema(roles: TestRoles): Promise<string> {
  return roles.fill(await fixture('torture-schema.sql'));
}

/** The torture schema, and everything else that a schema can hold. */
export async function wholeTortureSchema(roles: TestRoles): Promise<string> {
  return roles.fill((await fixture('torture-schema.sql')) + (await fixture('torture-schema-deeper.sql')));
}

export async function buildAll(destination: pg.Client, plan: SchemaPlan): Promise<void> {
  const { signal } = new AbortController();
  const before = await buildSchema(destination, plan.beforeCopy, { phase: 'before-copy', signal });
  const after = await buildSchema(destination, plan.afterCopy, { phase: 'after-copy', signal });
  const problems = [...before.skipped, ...after.skipped, ...before.findings, ...after.findings];
  if (problems.length > 0) throw new Error(`the build left something out: ${JSON.stringify(problems)}`);
}

/** Major version of the pg_dump on PATH; 0 where there is none. */
export function dumpVersion(): number {
  try {
    return Number(/(\d+)\./.exec(execFileSync('pg_dump', ['--version'], { encoding: 'utf8' }))?.[1] ?? 0);
  } catch {
    return 0;
  }
}

/** The schema as pg_dump writes it, without comments, blank lines and what depends on the moment. */
export async function dumpSchema(endpoint: DatabaseEndpoint): Promise<readonly string[]> {
  const { stdout } = await promisify(execFile)(
    'pg_dump',
    [
      '--schema-only',
      '--exclude-schema=understudy',
      `--host=${endpoint.host}`,
      `--port=${endpoint.port}`,
      `--username=${endpoint.user}`,
      endpoint.database,
    ],
    { env: { ...process.env, PGPASSWORD: endpoint.password ?? '' }, maxBuffer: 1 << 26 },
  );
  return stdout.split('\n').filter((line) => line !== '' && !/^(--|\\(un)?restrict)/.test(line));
}

export interface SecondDatabase extends AsyncDisposable {
  readonly endpoint: DatabaseEndpoint;
  readonly client: pg.Client;
}

/** Another database on one of the pair's servers. */
export async function secondDatabase(side: Side, pair: DatabasePair): Promise<SecondDatabase> {
  const name = `t2_${randomBytes(5).toString('hex')}`;
  const admin = side === 'source' ? pair.onSource : pair.onDestination;
  await admin.query(createDatabaseSql(side, name));
  const endpoint = { ...pair[side], database: name };
  const client = await connectControl('destination', endpoint, { purpose: 'test' });
  return {
    endpoint,
    client,
    async [Symbol.asyncDispose]() {
      await client.end();
      await admin.query(`DROP DATABASE ${quoteIdent(name)} WITH (FORCE)`);
    },
  };
}
