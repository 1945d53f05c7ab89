/** Several databases behind one listener: one of them moves, the others stay on the source. */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { SUPERUSER, SUPERUSER_PASSWORD } from '../../../src/app/demo/embedded-server.js';
import { WHOLE_DATABASE as ALL } from '../../../src/core/ports.js';
import { connectControl } from '../../../src/core/postgres.js';
import { destine } from '../../../src/proxy/login/databases.js';
import type { ProxySettings } from '../../../src/proxy/settings.js';
import { databasePair, until, type DatabasePair } from '../../support/servers.js';
import {
  RawClient,
  recordingTap,
  send,
  startProxy,
  uniqueName,
  type RunningProxy,
} from '../proxy-support.js';

let pair: DatabasePair;
const other = uniqueName('other');
const closed = uniqueName('closed');
beforeAll(async () => {
  pair = await databasePair();
  for (const name of [other, closed]) await pair.onSource.query(`CREATE DATABASE ${name}`);
  await pair.onSource.query(`ALTER DATABASE ${closed} WITH ALLOW_CONNECTIONS false`);
});
afterAll(async () => {
  for (const name of [other, closed]) await pair.onSource.query(`DROP DATABASE ${name} WITH (FORCE)`);
  await pair[Symbol.asyncDispose]();
});

const proxyFor = (databases: ProxySettings['databases']): Promise<RunningProxy> =>
  startProxy(pair, { databases });

/** The database a client ends up in, or how it was refused. */
async function into(port: number, database: string, user = SUPERUSER): Promise<string> {
  const client = new pg.Client({
    host: '127.0.0.1',
    port,
    database,
    user,
    password: SUPERUSER_PASSWORD,
  });
  client.on('error', () => undefined);
  try {
    await client.connect();
    return (await client.query<{ name: string }>('SELECT current_database() AS name')).rows[0]?.name ?? '';
  } catch (error) {
    const { code, message } = error as pg.DatabaseError;
    return `${code}: ${message}`;
  } finally {
    await client.end().catch(() => undefined);
  }
}

test('names are told apart', () => {
  const names = { alias: 'shop', reports: 'archive', shop: 'trap' };
  expect(destine('alias', 'shop', names)).toEqual({ kind: 'managed' });
  expect(destine('reports', 'shop', names)).toEqual({ kind: 'passed-through', database: 'archive' });
  expect(destine('shop', 'shop', {})).toEqual({ kind: 'managed' });
  expect(destine('shop', 'shop', names)).toEqual({ kind: 'passed-through', database: 'trap' });
  expect(destine('any', 'shop', names)).toEqual({ kind: 'unserved' });
  expect(destine('any', 'shop', { '*': '*' })).toEqual({ kind: 'passed-through', database: 'any' });
  for (const name of ['*', 'constructor', '__proto__']) {
    expect(destine(name, 'shop', names), name).toEqual({ kind: 'unserved' });
  }
});

describe('clients', () => {
  test('reach the databases that are named, by their names here', async () => {
    await using proxy = await proxyFor({ reports: other, app: pair.source.database });
    expect(await into(proxy.port, proxy.database)).toBe(proxy.database);
    expect(await into(proxy.port, 'app')).toBe(proxy.database);
    expect(await into(proxy.port, 'reports')).toBe(other);
    expect(await into(proxy.port, other)).toMatch(/^3D000: .*not served/);
  });

  test('reach any by *, and meet the server’s own refusals', async () => {
    await using proxy = await proxyFor({ '*': '*' });
    expect(await into(proxy.port, other)).toBe(other);
    for (const name of ['nowhere', closed]) {
      const direct = await into(pair.source.port, name);
      expect(await into(proxy.port, name)).toBe(direct);
      expect(direct).toMatch(/^(3D000|55000): /);
    }
  });

  test('by default only one is served, and an unknown one is refused in the server’s words', async () => {
    await using proxy = await proxyFor({});
    expect(await into(proxy.port, other)).toMatch(/^3D000: .*not served/);
    expect(await into(proxy.port, 'nowhere')).toBe(await into(pair.source.port, 'nowhere'));
  });

  test('a role’s connection limit and its missing privilege are the server’s to tell', async () => {
    const [limited, stranger] = [uniqueName('limited'), uniqueName('stranger')];
    await pair.onSource.query(
      `CREATE ROLE ${limited} LOGIN PASSWORD '${SUPERUSER_PASSWORD}' CONNECTION LIMIT 0;
       CREATE ROLE ${stranger} LOGIN PASSWORD '${SUPERUSER_PASSWORD}';
       REVOKE CONNECT ON DATABASE ${other} FROM PUBLIC`,
    );
    await using proxy = await proxyFor({ '*': '*' });
    for (const [role, database, sqlState] of [
      [limited, proxy.database, '53300'],
      [stranger, other, '42501'],
    ] as const) {
      const direct = await into(pair.source.port, database, role);
      expect(await into(proxy.port, database, role)).toBe(direct);
      expect(direct.slice(0, 5)).toBe(sqlState);
    }
    await pair.onSource.query(
      `DROP ROLE ${limited}; DROP ROLE ${stranger}; GRANT CONNECT ON DATABASE ${other} TO PUBLIC`,
    );
  });
});

describe('a switch', () => {
  const never = new AbortController().signal;
  const options = {
    drainTimeoutMs: 5000,
    onDrainTimeout: 'abort',
    onPinned: 'refuse',
    signal: never,
  } as const;

  test('moves sessions of the one database, and leaves those of others where they are, busy or not', async () => {
    const tap = recordingTap();
    await using running = await startProxy(pair, { databases: { '*': '*' } }, { tap });
    const { proxy, port } = running;
    await using moving = await RawClient.connect(port, running.database);
    await using staying = await RawClient.connect(port, other);
    // What would forbid moving it, and what would keep the gate from closing.
    await staying.run([send.query('CREATE TEMP TABLE t (a int); BEGIN; INSERT INTO t VALUES (1)')]);
    expect(proxy.status()).toMatchObject({
      sessions: 2,
      passedThrough: 1,
      bySide: { source: 1, destination: 0 },
      clients: [
        { database: running.database, passedThrough: false },
        { database: other, passedThrough: true },
      ],
    });
    expect(await proxy.prepare(ALL, 'destination', never)).toMatchObject({
      sessions: 1,
      warm: 1,
      blockers: [],
    });
    await proxy.hold(ALL, 'destination', options);
    // Nothing stands in front of the others while the gate is closed.
    expect(await staying.column('SELECT a FROM t')).toEqual(['1']);
    expect(await into(port, other)).toBe(other);
    expect(await proxy.switchTo(ALL, { side: 'destination', epoch: 1 })).toEqual({ moved: 1, closed: 0 });
    proxy.release(ALL);
    expect(await moving.column('SHOW server_version_num')).toEqual([expect.stringMatching(/^18/)]);
    expect(await staying.column('SHOW server_version_num')).toEqual([expect.stringMatching(/^14/)]);
    expect(proxy.status().bySide).toEqual({ source: 0, destination: 1 });
    expect(await into(port, other)).toBe(other);
    // What others do is not the migration's.
    expect(tap.offered.some(({ text }) => text.includes('TEMP TABLE'))).toBe(false);
    expect(tap.offered.some(({ text }) => text.includes('server_version_num'))).toBe(true);
  });

  test('a route that is set closes none of them, and neither does an unknown one', async () => {
    await using running = await proxyFor({ '*': '*' });
    await using staying = await RawClient.connect(running.port, other);
    running.proxy.setRoute(ALL, { side: 'destination', epoch: 1 });
    running.proxy.setUnavailable(ALL, { sqlState: '57P03', message: 'not known' });
    expect(await staying.column('SELECT 1')).toEqual(['1']);
    expect(await into(running.port, other)).toBe(other);
  });

  test('a stop closes them as all others', async () => {
    const running = await proxyFor({ '*': '*' });
    await using staying = await RawClient.connect(running.port, other);
    await running[Symbol.asyncDispose]();
    await until(() => staying.closed);
  });
});

test('passwords of databases that stay are the source’s, whichever side leads', async () => {
  const asked: string[] = [];
  const source = (name: string) => ({
    lookup: (_user: string) => {
      asked.push(name);
      return Promise.resolve({ kind: 'plain', password: SUPERUSER_PASSWORD } as const);
    },
  });
  await using running = await startProxy(
    pair,
    { databases: { '*': '*' } },
    { verifiers: source('leading'), sourceVerifiers: source('source') },
  );
  expect(await into(running.port, other)).toBe(other);
  expect(await into(running.port, running.database)).toBe(running.database);
  expect(asked).toEqual(['source', 'leading']);
});

test('replication connections to them are passed through too', async () => {
  await using running = await proxyFor({ '*': '*' });
  const client = await connectControl(
    'source',
    { ...pair.source, port: running.port, database: other },
    { purpose: 'test', replication: true },
  );
  const { rows } = await client.query<{ dbname: string }>('IDENTIFY_SYSTEM');
  expect(rows[0]?.dbname).toBe(other);
  await client.end();
});
