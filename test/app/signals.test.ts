/** The sidecar as an operator handles it: SIGHUP and SIGTERM, to the built program in a process of its own. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { UnderstudyProcess } from '../../src/app/demo/understudy-process.js';
import type { UnderstudyConfig } from '../../src/app/config/schema.js';
import type { DatabaseEndpoint } from '../../src/core/ports.js';
import { Authority, opensslMissing, type Pem } from '../support/certificates.js';
import { databasePair, until, type DatabasePair } from '../support/servers.js';

const PROGRAM = fileURLToPath(new URL('../../dist/app/main.js', import.meta.url));

let pair: DatabasePair;
let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'understudy-signals-'));
  pair = await databasePair();
});
afterAll(async () => {
  await pair[Symbol.asyncDispose]();
  await rm(folder, { recursive: true });
});

function urlOf(endpoint: DatabaseEndpoint, port = endpoint.port): string {
  return `postgres://${endpoint.user}:${endpoint.password ?? ''}@127.0.0.1:${port}/${endpoint.database}`;
}

/** `where`: a folder whose log nobody else has written to. */
function start(
  where = folder,
  listen: UnderstudyConfig['listen'] = {},
  sourceParameters = '',
  proxy: UnderstudyConfig['proxy'] = {},
): Promise<UnderstudyProcess> {
  return UnderstudyProcess.start({
    folder: where,
    sourceUrl: `${urlOf(pair.source)}${sourceParameters}`,
    destinationUrl: urlOf(pair.destination),
    config: { listen, proxy, shadow: { enabled: false }, limits: { stopTimeoutMs: 60_000 } },
    program: PROGRAM,
  });
}

async function connect(running: UnderstudyProcess): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: urlOf(pair.source, running.port) });
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

interface Line {
  readonly msg: string;
  readonly [field: string]: unknown;
}

/** Lines of its log that begin with `SIGHUP`, once there are `count` of them. */
async function answers(running: UnderstudyProcess, count: number): Promise<readonly Line[]> {
  let found: readonly Line[] = [];
  await until(
    async () => {
      const lines = (await readFile(running.logFile, 'utf8'))
        .split('\n')
        .filter((line) => line.startsWith('{'));
      found = lines.map((line) => JSON.parse(line) as Line).filter(({ msg }) => msg.startsWith('SIGHUP'));
      return found.length >= count;
    },
    { what: `${count} answers to SIGHUP` },
  );
  return found;
}

function hangUp(running: UnderstudyProcess): void {
  if (running.pid !== undefined) process.kill(running.pid, 'SIGHUP');
}

test('SIGHUP takes over limits and log level, names what needs a restart, and refuses a broken file as a whole', async () => {
  await using running = await start();
  const first = await connect(running);
  try {
    const original = await readFile(running.configFile, 'utf8');
    const changed = original.replace('limits:\n', 'limits:\n  clientsMax: 1\n');
    await writeFile(running.configFile, `${changed}capture: { ringBytes: 65536 }\nlog: { level: debug }\n`);
    hangUp(running);
    const [taken, restart] = await answers(running, 2);
    expect(taken).toMatchObject({ applied: ['limits.clientsMax', 'log.level'] });
    expect(restart).toMatchObject({ needRestart: ['capture.ringBytes'] });
    await expect(connect(running)).rejects.toMatchObject({ code: '53300' });
    expect((await first.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);

    await writeFile(
      running.configFile,
      changed.replace('clientsMax: 1', 'clientsMax: many\n  clientIdleTimeoutMs: 1'),
    );
    hangUp(running);
    const refused = (await answers(running, 3)).at(-1);
    expect(refused?.msg).toBe('SIGHUP: refused, everything stays as it is');
    expect(refused?.['problems']).toEqual([
      expect.stringMatching(
        /understudy\.yaml:\d+:\d+ limits\.clientsMax: expected a whole number .*, got "many"$/,
      ),
    ]);
    await expect(connect(running)).rejects.toMatchObject({ code: '53300' });
    expect((await first.query('SELECT 2 AS two')).rows).toEqual([{ two: 2 }]);

    await writeFile(running.configFile, original);
    hangUp(running);
    expect((await answers(running, 4)).at(-1)).toMatchObject({ applied: ['limits.clientsMax', 'log.level'] });
    const second = await connect(running);
    await second.end();
  } finally {
    await first.end();
  }
});

test.skipIf(opensslMissing)(
  'SIGHUP shows new clients a renewed certificate, and refuses one that does not fit its key',
  async () => {
    using old = new Authority();
    using renewed = new Authority();
    const write = async (cert: Pem, key: Pem): Promise<void> => {
      await writeFile(join(folder, 'shown.crt'), cert.certPem);
      await writeFile(join(folder, 'shown.key'), key.keyPem);
    };
    const [first, second] = [old, renewed].map((by) => by.issue('localhost', { names: 'DNS:localhost' }));
    if (first === undefined || second === undefined) throw new Error('no certificates');
    await write(first, first);
    const tls = { cert: join(folder, 'shown.crt'), key: join(folder, 'shown.key') };
    const authorityFile = join(folder, 'source-ca.pem');
    await writeFile(authorityFile, old.certPem);
    const where = await mkdtemp(join(folder, 'tls-'));
    await using running = await start(where, { tls }, `?sslrootcert=${authorityFile}`);
    const signedBy = async (authority: Authority): Promise<boolean> => {
      const ssl = { ca: authority.certPem, servername: 'localhost' };
      const client = new pg.Client({ connectionString: urlOf(pair.source, running.port), ssl });
      client.on('error', () => undefined);
      const connected = await client.connect().then(
        () => true,
        () => false,
      );
      await client.end().catch(() => undefined);
      return connected;
    };
    expect([await signedBy(old), await signedBy(renewed)]).toEqual([true, false]);
    await write(second, first);
    hangUp(running);
    expect((await answers(running, 1)).at(-1)?.msg).toBe('SIGHUP: refused, everything stays as it is');
    expect([await signedBy(old), await signedBy(renewed)]).toEqual([true, false]);
    await write(second, second);
    hangUp(running);
    expect((await answers(running, 2)).at(-1)?.['applied']).toEqual(['listen.tls.cert', 'listen.tls.key']);
    expect([await signedBy(old), await signedBy(renewed)]).toEqual([false, true]);

    // Towards the servers.
    await writeFile(authorityFile, 'not a certificate');
    hangUp(running);
    expect((await answers(running, 3)).at(-1)?.msg).toBe('SIGHUP: refused, everything stays as it is');
    await writeFile(authorityFile, renewed.certPem);
    hangUp(running);
    expect((await answers(running, 4)).at(-1)?.['applied']).toEqual(['source.tlsCa']);
    hangUp(running);
    expect((await answers(running, 5)).at(-1)?.['applied']).toEqual([]);
  },
);

test('SIGHUP reaches every process that serves clients', async () => {
  const where = await mkdtemp(join(folder, 'workers-'));
  await using running = await start(where, {}, '', { workers: 2, poolMode: 'transaction' });
  const clients = await Promise.all([connect(running), connect(running)]);
  try {
    const original = await readFile(running.configFile, 'utf8');
    await writeFile(running.configFile, original.replace('limits:\n', 'limits:\n  queryTimeoutMs: 100\n'));
    hangUp(running);
    expect((await answers(running, 1)).at(-1)).toMatchObject({ applied: ['limits.queryTimeoutMs'] });
    // One each.
    const status = await running.admin.status();
    expect(status.proxy.workers?.map(({ connections }) => connections)).toEqual([1, 1]);
    await Promise.all(
      clients.map((client) =>
        expect(client.query('SELECT pg_sleep(30)')).rejects.toMatchObject({ code: '57014' }),
      ),
    );
  } finally {
    await Promise.all(clients.map((client) => client.end()));
  }
});

test('SIGTERM lets a transaction end, is not ready meanwhile, and a second one ends it at once', async () => {
  await using running = await start();
  const open = await connect(running);
  await open.query('BEGIN');
  const ready = async (): Promise<number> =>
    (await fetch(`http://127.0.0.1:${running.adminPort}/readyz`)).status;
  expect(await ready()).toBe(200);
  const { pid } = running;
  if (pid === undefined) throw new Error('it does not run');
  process.kill(pid, 'SIGTERM');
  await until(async () => (await ready()) === 503);
  // The kernel resets what comes between the last look at its queue and the close of the port.
  let refusal: unknown = 'ECONNRESET';
  await until(async () => {
    refusal = await connect(running).then(
      () => 'served',
      (error: unknown) => (error as { readonly code?: unknown }).code,
    );
    return refusal !== 'ECONNRESET';
  });
  expect(refusal).toMatch(/^(ECONNREFUSED|57P03)$/);
  expect((await open.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
  const ended = running.unexpectedEnd().catch((error: unknown) => String(error));
  let over = false;
  void ended.then(() => (over = true));
  await until(() => {
    try {
      if (!over) process.kill(pid, 'SIGTERM');
    } catch {
      // It has ended, and this process has not been told yet.
    }
    return over;
  });
  expect(await ended).toContain('ended with 130');
  await open.end().catch(() => undefined);
});
