/** Real clients through the handshakes to real servers, PostgreSQL 14 and 18, one role per way to authenticate. */
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { chownSync, existsSync, statSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import pg from 'pg';
import postgres from 'postgres';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  type EmbeddedServer,
  freePort,
  SUPERUSER,
  SUPERUSER_PASSWORD,
} from '../../../src/app/demo/embedded-server.js';
import type { DatabaseEndpoint, Side, TlsMode } from '../../../src/core/ports.js';
import { connectControl } from '../../../src/core/postgres.js';
import { BackendRefused } from '../../../src/proxy/backend/backend-refused.js';
import { openBackend, sendCancel, type BackendEndpoint } from '../../../src/proxy/backend/backend.js';
import type { BackendCredentials } from '../../../src/proxy/login/credentials.js';
import { clientTls } from '../../../src/proxy/login/tls.js';
import { QueryVerifiers, UsersFileVerifiers } from '../../../src/proxy/login/verifiers.js';
import { encodeQuery, parseErrorFields } from '../../../src/wire/postgres/messages.js';
import { encodeStartup, parseAuthentication } from '../../../src/wire/postgres/startup.js';
import { FAST_SETTINGS } from '../../support/global-setup.js';
import { until, ownServer } from '../../support/servers.js';
import {
  drip,
  listen,
  makeCertificate,
  type ListenerOptions,
  type TestCertificate,
} from './handshake-listener.js';

const HBA = [
  'hostssl all ssl_user 127.0.0.1/32 scram-sha-256',
  'host all ssl_user 127.0.0.1/32 reject',
  'host all md5_user 127.0.0.1/32 md5',
  'host all clear_user 127.0.0.1/32 password',
  'host all trust_user 127.0.0.1/32 trust',
  'host all all 127.0.0.1/32 scram-sha-256',
];
const PASSWORD = 'correct horse';
const SETUP = `
  SET password_encryption = 'scram-sha-256';
  CREATE ROLE alice LOGIN PASSWORD '${PASSWORD}';
  CREATE ROLE unicode LOGIN PASSWORD 'pa\u2168\u00A0\u00DF';
  CREATE ROLE ssl_user LOGIN PASSWORD '${PASSWORD}';
  CREATE ROLE clear_user LOGIN PASSWORD '${PASSWORD}';
  CREATE ROLE trust_user LOGIN PASSWORD '${PASSWORD}';
  CREATE ROLE single LOGIN CONNECTION LIMIT 1 PASSWORD '${PASSWORD}';
  CREATE ROLE expired LOGIN PASSWORD '${PASSWORD}' VALID UNTIL '2001-01-01';
  CREATE ROLE grouped NOLOGIN PASSWORD '${PASSWORD}';
  CREATE ROLE bare LOGIN;
  SET password_encryption = 'md5';
  CREATE ROLE md5_user LOGIN PASSWORD '${PASSWORD}';
  SET password_encryption = 'scram-sha-256';`;
const DATABASE = 'shop';

interface World {
  readonly server: EmbeddedServer;
  readonly control: pg.Client;
  readonly admin: DatabaseEndpoint;
  readonly verifiers: QueryVerifiers;
}
let certificate: TestCertificate;
let worlds: Readonly<Record<Side, World>>;

function backendEndpoint(side: Side, tls: TlsMode = 'disable'): BackendEndpoint {
  return { side, host: '127.0.0.1', port: worlds[side].server.port, tls };
}

async function buildWorld(side: Side): Promise<World> {
  const version = side === 'source' ? 14 : 18;
  const server = await ownServer({ version, settings: FAST_SETTINGS, hba: HBA });
  const admin = {
    host: server.host,
    port: server.port,
    database: 'postgres',
    user: SUPERUSER,
    password: SUPERUSER_PASSWORD,
    tls: 'disable',
  } as const;
  const control = await connectControl(side, admin, { purpose: 'test' });
  await control.query(SETUP);
  await control.query(`CREATE DATABASE ${DATABASE}`);
  const { uid, gid } = statSync(join(server.folder, 'data'));
  for (const [name, pem] of Object.entries({ key: certificate.keyPem, cert: certificate.certPem })) {
    const path = join(server.folder, `server-${name}.pem`);
    writeFileSync(path, pem, { mode: 0o600 });
    chownSync(path, uid, gid);
    await control.query(`ALTER SYSTEM SET ssl_${name}_file = '${path}'`);
  }
  await control.query('ALTER SYSTEM SET ssl = on');
  await control.query('SELECT pg_reload_conf()');
  await until(async () => {
    // A new session, because the running one keeps what it started with until it idles.
    const { rows } = await control.query<{ ssl: string }>('SHOW ssl');
    return rows[0]?.ssl === 'on';
  });
  const verifiers = new QueryVerifiers({
    current: () => ({ side, endpoint: admin }),
    connectTimeoutMs: 5_000,
    queryTimeoutMs: 5_000,
    waitingMax: 100,
  });
  return { server, control, admin, verifiers };
}

beforeAll(async () => {
  certificate = makeCertificate();
  const [source, destination] = await Promise.all([buildWorld('source'), buildWorld('destination')]);
  worlds = { source, destination };
  // The same verifiers on both sides, as a migration sees to.
  const { rows } = await source.control.query<{ rolname: string; rolpassword: string }>(
    `SELECT rolname, rolpassword FROM pg_authid WHERE rolpassword LIKE 'SCRAM%' AND rolname <> '${SUPERUSER}'`,
  );
  for (const { rolname, rolpassword } of rows) {
    await destination.control.query(`ALTER ROLE ${rolname} PASSWORD '${rolpassword}'`);
  }
});
afterAll(async () => {
  for (const { verifiers, control, server } of Object.values(worlds)) {
    await verifiers.close();
    await control.end();
    await server[Symbol.asyncDispose]();
  }
  certificate[Symbol.dispose]();
});

async function proxy(side: Side, options: Partial<ListenerOptions> = {}) {
  return await listen({
    verifiers: worlds[side].verifiers,
    endpoint: backendEndpoint(side),
    ...options,
  });
}

interface Login {
  readonly user: string;
  readonly password?: string;
  readonly database?: string;
  readonly ssl?: pg.ClientConfig['ssl'];
  readonly application?: string;
}

function clientOf(port: number, user: string): pg.Client {
  return new pg.Client({ host: '127.0.0.1', port, user, password: PASSWORD, database: DATABASE });
}

/** Logs in with node-postgres and asks who it is there. Throws what the driver throws. */
async function whoAmI(port: number, login: Login): Promise<string> {
  const client = new pg.Client({
    host: '127.0.0.1',
    port,
    user: login.user,
    password: login.password ?? PASSWORD,
    database: login.database ?? DATABASE,
    ssl: login.ssl ?? false,
    application_name: login.application ?? '',
  });
  client.on('error', () => undefined);
  try {
    await client.connect();
    const { rows } = await client.query<{ who: string }>(
      `SELECT concat_ws('@', current_user, current_database(), nullif(current_setting('application_name'), '')) AS who`,
    );
    return rows[0]?.who ?? '';
  } finally {
    await client.end().catch(() => undefined);
  }
}

const failing = async (port: number, login: Login): Promise<{ code: string; message: string }> => {
  try {
    await whoAmI(port, login);
  } catch (error) {
    const { code, message } = error as pg.DatabaseError;
    return { code: code ?? '', message };
  }
  throw new Error('the login was let through');
};

describe.each(['source', 'destination'] as const)('%s', (side) => {
  test('a SCRAM role logs in, with its startup parameters, through node-postgres and postgres.js', async () => {
    await using listener = await proxy(side);
    expect(await whoAmI(listener.port, { user: 'alice', application: 'shop' })).toBe('alice@shop@shop');
    const sql = postgres({
      host: '127.0.0.1',
      port: listener.port,
      user: 'alice',
      password: PASSWORD,
      database: DATABASE,
      max: 2,
      connection: { search_path: 'pg_catalog', TimeZone: 'Asia/Tokyo' },
    });
    expect(
      await sql`SELECT current_setting('search_path') AS path, current_setting('TimeZone') AS zone`,
    ).toEqual([{ path: 'pg_catalog', zone: 'Asia/Tokyo' }]);
    await sql.end();
    expect(listener.accepted[0]?.credentials.kind).toBe('scram-keys');
    expect(listener.backends[0]?.parameters.get('server_version')).toMatch(
      side === 'source' ? /^14\./ : /^18\./,
    );
    expect(listener.backends[0]?.secretKey).toHaveLength(4);
  });

  test('every message may come split at every byte, on either side of the proxy', async () => {
    await using slowServer = await drip(worlds[side].server.port);
    const endpoint = { ...backendEndpoint(side), port: slowServer.port };
    await using listener = await proxy(side, { endpoint });
    await using slowClient = await drip(listener.port);
    expect(await whoAmI(slowClient.port, { user: 'alice' })).toBe('alice@shop');
    expect(await whoAmI(slowClient.port, { user: 'md5_user' })).toBe('md5_user@shop');
  });

  test('MD5 and trusted roles log in; the proxy asks the trusted one for its password', async () => {
    await using listener = await proxy(side);
    expect(await whoAmI(listener.port, { user: 'md5_user' })).toBe('md5_user@shop');
    expect(listener.accepted[0]?.credentials.kind).toBe('md5');
    expect(await whoAmI(listener.port, { user: 'trust_user' })).toBe('trust_user@shop');
    expect(await failing(listener.port, { user: 'trust_user', password: 'wrong' })).toMatchObject({
      code: '28P01',
    });
  });

  test('a server that wants cleartext is served where clients give it, and named where they don’t', async () => {
    await using cleartext = await proxy(side, { authentication: 'cleartext' });
    for (const user of ['clear_user', 'alice', 'md5_user']) {
      expect(await whoAmI(cleartext.port, { user })).toBe(`${user}@shop`);
      expect(await failing(cleartext.port, { user, password: 'wrong' })).toMatchObject({ code: '28P01' });
    }
    expect(await whoAmI(cleartext.port, { user: 'unicode', password: 'paIX \u00DF' })).toBe('unicode@shop');
    expect(await failing(cleartext.port, { user: 'nobody' })).toMatchObject({ code: '28P01' });
    await using listener = await proxy(side);
    expect(await failing(listener.port, { user: 'clear_user' })).toMatchObject({
      code: '28000',
      message: expect.stringContaining(side) as string,
    });
  });

  test('a wrong password, an unknown role, an expired or missing password meet PostgreSQL’s own error', async () => {
    await using listener = await proxy(side);
    for (const [user, password] of [
      ['alice', 'wrong'],
      ['md5_user', 'wrong'],
      ['nobody', PASSWORD],
      ['expired', PASSWORD],
      ['bare', PASSWORD],
    ] as const) {
      const direct = await failing(worlds[side].server.port, { user, password });
      expect(await failing(listener.port, { user, password })).toEqual(direct);
      expect(direct.code).toBe('28P01');
    }
  });

  test('what the server refuses reaches the client in the server’s own words', async () => {
    await using listener = await proxy(side);
    for (const login of [
      { user: 'alice', database: 'nowhere' },
      { user: 'grouped' },
      { user: 'alice', application: 'x', database: 'template0' },
    ]) {
      const direct = await failing(worlds[side].server.port, login);
      expect(await failing(listener.port, login)).toEqual(direct);
    }
    expect(await failing(listener.port, { user: 'alice', database: 'nowhere' })).toMatchObject({
      code: '3D000',
    });
  });

  test('a full house is reported as such', async () => {
    await using listener = await proxy(side);
    const first = clientOf(listener.port, 'single');
    await first.connect();
    expect(await failing(listener.port, { user: 'single' })).toMatchObject({ code: '53300' });
    await first.end();
  });

  test('a rotated password works at once, and the old one no more', async () => {
    await using listener = await proxy(side);
    const { control } = worlds[side];
    await control.query(`CREATE ROLE rotating LOGIN PASSWORD 'one'`);
    expect(await whoAmI(listener.port, { user: 'rotating', password: 'one' })).toBe('rotating@shop');
    await control.query(`ALTER ROLE rotating PASSWORD 'two'`);
    expect(await whoAmI(listener.port, { user: 'rotating', password: 'two' })).toBe('rotating@shop');
    expect(await failing(listener.port, { user: 'rotating', password: 'one' })).toMatchObject({
      code: '28P01',
    });
    await control.query('DROP ROLE rotating');
  });

  test('servers are reached over TLS as the mode asks', async () => {
    const startup = { user: 'ssl_user', database: DATABASE, parameters: new Map<string, string>() };
    const credentials = { kind: 'password', password: PASSWORD } as const;
    const attempt = async (change: Partial<BackendEndpoint>): Promise<string> => {
      try {
        const endpoint = { ...backendEndpoint(side), ...change };
        const backend = await openBackend(endpoint, startup, credentials, { connectTimeoutMs: 10_000 });
        backend.socket.destroy();
        return 'open';
      } catch (error) {
        return error instanceof BackendRefused ? error.sqlState : String(error);
      }
    };
    const tlsCa = certificate.certPem;
    expect(await attempt({ tls: 'disable' })).toBe('28000');
    expect(await attempt({ tls: 'prefer' })).toBe('open');
    expect(await attempt({ tls: 'require' })).toBe('open');
    expect(await attempt({ tls: 'verify-full', host: 'localhost', tlsCa })).toBe('open');
    expect(await attempt({ tls: 'verify-full', host: '127.0.0.1', tlsCa })).toBe('08006');
    expect(await attempt({ tls: 'verify-full', host: 'localhost' })).toBe('08006');
  });

  test('clients are answered over TLS, and then may give a cleartext password', async () => {
    const secureContext = clientTls(certificate);
    await using listener = await proxy(side, {
      tls: secureContext,
      endpoint: backendEndpoint(side, 'require'),
    });
    const ssl = { ca: certificate.certPem, servername: 'localhost' };
    expect(await whoAmI(listener.port, { user: 'ssl_user', ssl })).toBe('ssl_user@shop');
    expect(await failing(listener.port, { user: 'ssl_user', ssl, password: 'no' })).toMatchObject({
      code: '28P01',
    });
    await using cleartext = await proxy(side, { tls: secureContext, authentication: 'cleartext' });
    expect(await whoAmI(cleartext.port, { user: 'clear_user', ssl })).toBe('clear_user@shop');
  });

  test.skipIf(!existsSync('/usr/bin/psql'))('psql logs in, plain and over TLS', async () => {
    const tls = clientTls(certificate);
    await using listener = await proxy(side, { tls, endpoint: backendEndpoint(side, 'prefer') });
    for (const mode of ['disable', 'prefer', 'verify-full']) {
      const url = `host=localhost hostaddr=127.0.0.1 port=${listener.port} user=alice dbname=${DATABASE} sslmode=${mode} sslrootcert=${certificate.certPath}`;
      const { stdout } = await promisify(execFile)(
        'psql',
        ['-XAtw', url, '-c', 'SELECT current_user', '-c', '\\conninfo'],
        { env: { ...process.env, PGPASSWORD: PASSWORD } },
      );
      expect(stdout).toMatch(/^alice\n/);
      expect(stdout.includes('SSL connection')).toBe(mode !== 'disable');
    }
  });

  test('a cancel request stops the statement it names', async () => {
    const endpoint = backendEndpoint(side, 'prefer');
    await using listener = await proxy(side, {
      endpoint,
      onCancel: (processId, secretKey) => sendCancel(endpoint, processId, secretKey, 5_000),
    });
    const client = clientOf(listener.port, 'alice');
    await client.connect();
    const sleeping = client.query('SELECT pg_sleep(60)').catch((error: pg.DatabaseError) => error.code);
    const [backend] = listener.backends;
    await until(async () => {
      const { rows } = await worlds[side].control.query(
        `SELECT FROM pg_stat_activity WHERE pid = $1 AND state = 'active' AND query LIKE '%pg_sleep%'`,
        [backend?.processId],
      );
      return rows.length === 1;
    });
    await sendCancel(
      { ...endpoint, port: listener.port, tls: 'disable' },
      backend?.processId ?? 0,
      backend?.secretKey ?? Buffer.alloc(4),
      5_000,
    );
    expect(await sleeping).toBe('57014');
    await client.end();
  });
});

test('the credentials of one login open both sides, and neither after its password was changed', async () => {
  await using listener = await proxy('source');
  await whoAmI(listener.port, { user: 'alice' });
  const credentials = listener.accepted[0]?.credentials ?? { kind: 'none' };
  const startup = { user: 'alice', database: DATABASE, parameters: new Map([['application_name', 'warm']]) };
  const open = (): Promise<unknown> =>
    openBackend(backendEndpoint('destination'), startup, credentials, { connectTimeoutMs: 10_000 }).then(
      (backend) => backend.socket.destroy(),
    );
  await open();
  const { control } = worlds.destination;
  const { rows } = await control.query<{ was: string }>(
    `SELECT rolpassword AS was FROM pg_authid WHERE rolname = 'alice'`,
  );
  await control.query(`ALTER ROLE alice PASSWORD '${PASSWORD}'`);
  const refusal: unknown = await open().catch((error: unknown) => error);
  expect(refusal).toMatchObject({ code: 'backend-refused', sqlState: '28P01' });
  const response = refusal instanceof BackendRefused ? refusal.response : Buffer.alloc(5);
  expect(parseErrorFields(response.subarray(5)).detail).toContain('another SCRAM verifier');
  await control.query(`ALTER ROLE alice PASSWORD '${rows[0]?.was}'`);
  await open();
});

test('credentials that can’t answer what a server asks are named, not tried', async () => {
  const none: BackendCredentials = { kind: 'none' };
  const md5: BackendCredentials = { kind: 'md5', hash: `md5${'0'.repeat(32)}` };
  for (const [user, credentials] of [
    ['alice', none],
    ['alice', md5],
    ['md5_user', none],
    ['clear_user', md5],
  ] as const) {
    const startup = { user, database: DATABASE, parameters: new Map<string, string>() };
    await expect(
      openBackend(backendEndpoint('source'), startup, credentials, { connectTimeoutMs: 10_000 }),
    ).rejects.toMatchObject({ code: 'backend-refused', sqlState: '28000' });
  }
  const trusted = { user: 'trust_user', database: DATABASE, parameters: new Map<string, string>() };
  const backend = await openBackend(backendEndpoint('source'), trusted, none, { connectTimeoutMs: 10_000 });
  backend.socket.destroy();
});

test('an opened server connection is paused, silent and ready, and its login notices are kept', async () => {
  const { control, server } = worlds.destination;
  await control.query('CREATE DATABASE greeting');
  const inside = await connectControl(
    'destination',
    { ...worlds.destination.admin, database: 'greeting' },
    { purpose: 'test' },
  );
  await inside.query(`
    CREATE FUNCTION public.greet() RETURNS event_trigger LANGUAGE plpgsql AS
      $$ BEGIN RAISE NOTICE 'welcome'; END $$;
    CREATE EVENT TRIGGER greet ON login EXECUTE FUNCTION public.greet();`);
  await inside.end();
  const backend = await openBackend(
    { side: 'destination', host: '127.0.0.1', port: server.port, tls: 'disable' },
    { user: 'alice', database: 'greeting', parameters: new Map() },
    { kind: 'password', password: PASSWORD },
    { connectTimeoutMs: 10_000 },
  );
  expect(backend.notices.toString('latin1', 0, 1)).toBe('N');
  expect(parseErrorFields(backend.notices.subarray(5))).toMatchObject({
    severity: 'NOTICE',
    message: 'welcome',
  });
  expect(backend.socket.isPaused()).toBe(true);
  expect(backend.socket.listenerCount('readable') + backend.socket.listenerCount('data')).toBe(0);
  let answer = '';
  backend.socket.on('data', (chunk: Buffer) => (answer += chunk.toString('latin1')));
  backend.socket.resume();
  backend.socket.write(encodeQuery(`SELECT 'here'`));
  await until(() => answer.includes('here') && answer.endsWith('Z\0\0\0\x05I'));
  backend.socket.destroy();
});

test('a server that is down is named, to the client too', async () => {
  const port = await freePort();
  const endpoint = { side: 'destination', host: '127.0.0.1', port, tls: 'disable' } as const;
  await using listener = await proxy('source', { endpoint });
  expect(await failing(listener.port, { user: 'alice' })).toMatchObject({
    code: '08006',
    message: expect.stringContaining('destination') as string,
  });
  await expect(sendCancel(endpoint, 1, Buffer.alloc(4), 5_000)).rejects.toMatchObject({
    code: 'destination-unreachable',
  });
});

test('lookups that come together share a query, and survive the loss of their connection', async () => {
  const { verifiers, control } = worlds.source;
  const names = ['alice', 'md5_user', 'nobody', 'alice'];
  const kinds = async (): Promise<unknown[]> =>
    (await Promise.all(names.map((name) => verifiers.lookup(name)))).map((secret) => secret?.kind ?? null);
  expect(await kinds()).toEqual(['scram', 'md5', null, 'scram']);
  const connections = async (): Promise<string[]> => {
    const { rows } = await control.query<{ pid: string }>(
      `SELECT pid FROM pg_stat_activity WHERE application_name = 'understudy verifiers'`,
    );
    return rows.map(({ pid }) => pid);
  };
  const [first = '', ...others] = await connections();
  expect(others).toEqual([]);
  await control.query('SELECT pg_terminate_backend($1::int)', [first]);
  expect(await kinds()).toEqual(['scram', 'md5', null, 'scram']);
  const [second = ''] = await connections();
  expect(second).not.toBe(first);

  // A server that stores MD5 asks for MD5 whom it does not know.
  await control.query("ALTER ROLE CURRENT_USER SET password_encryption = 'md5'");
  try {
    await control.query('SELECT pg_terminate_backend($1::int)', [second]);
    expect(await kinds()).toEqual(['scram', 'md5', 'none-by-md5', 'scram']);
    await using listener = await proxy('source');
    const client = net.connect(listener.port, '127.0.0.1');
    client.write(encodeStartup('nobody', 'shop', []));
    const [greeting] = (await once(client, 'data')) as [Buffer];
    expect(greeting.toString('latin1', 0, 1)).toBe('R');
    expect(parseAuthentication(greeting.subarray(5))).toMatchObject({ kind: 'md5' });
    client.destroy();
    expect(await failing(listener.port, { user: 'nobody' })).toMatchObject({ code: '28P01' });
  } finally {
    await control.query('ALTER ROLE CURRENT_USER RESET password_encryption');
  }
});

test('lookups follow the writable side, and are bounded', async () => {
  let side: Side = 'source';
  await worlds.source.control.query(`CREATE ROLE only_here LOGIN PASSWORD 'x'`);
  const verifiers = new QueryVerifiers({
    current: () => ({ side, endpoint: worlds[side].admin }),
    connectTimeoutMs: 5_000,
    queryTimeoutMs: 5_000,
    waitingMax: 2,
  });
  expect(await verifiers.lookup('only_here')).toMatchObject({ kind: 'scram' });
  side = 'destination';
  expect(await verifiers.lookup('only_here')).toBeNull();
  const many = await Promise.allSettled(['a', 'b', 'c', 'd', 'e'].map((user) => verifiers.lookup(user)));
  expect(many.map(({ status }) => status)).toContain('rejected');
  expect(many.map(({ status }) => status)).toContain('fulfilled');
  await verifiers.close();
  await expect(verifiers.lookup('alice')).rejects.toMatchObject({ code: 'cancelled' });
});

test('an account that may not read pg_authid is told what to do instead', async () => {
  const verifiers = new QueryVerifiers({
    current: () => ({
      side: 'source',
      endpoint: { ...worlds.source.admin, user: 'alice', password: PASSWORD },
    }),
    connectTimeoutMs: 5_000,
    queryTimeoutMs: 5_000,
    waitingMax: 10,
  });
  await expect(verifiers.lookup('alice')).rejects.toMatchObject({
    code: 'source-query-failed',
    advice: expect.stringContaining('users file') as string,
  });
  await verifiers.close();
});

test('a users file serves logins without the server’s verifiers, and its changes at once', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'understudy-users-'));
  const path = join(folder, 'userlist.txt');
  await writeFile(path, `; comment\n"alice" "${PASSWORD}"\n"md5_user" "md5${'0'.repeat(32)}"\n`);
  await using listener = await proxy('source', { verifiers: new UsersFileVerifiers(path) });
  expect(await whoAmI(listener.port, { user: 'alice' })).toBe('alice@shop');
  expect(listener.accepted[0]?.credentials.kind).toBe('password');
  expect(await failing(listener.port, { user: 'alice', password: 'x' })).toMatchObject({ code: '28P01' });
  expect(await failing(listener.port, { user: 'md5_user' })).toMatchObject({ code: '28P01' });
  await writeFile(path, `"trust_user" "${PASSWORD}"\n`);
  expect(await whoAmI(listener.port, { user: 'trust_user' })).toBe('trust_user@shop');
  expect(await failing(listener.port, { user: 'alice' })).toMatchObject({ code: '28P01' });
  await rm(folder, { recursive: true });
  expect(await failing(listener.port, { user: 'alice' })).toMatchObject({ code: '57P03' });
});
