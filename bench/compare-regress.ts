/**
 * PostgreSQL's own regression tests, direct and through the proxy, and whether psql's output is the same.
 *
 *   npm run compare:regress -- --dir postgresql-15.18/src/test/regress [--version 14] [--mode session] [--only join,copy] [--keep DIR]
 *
 * The tests are not part of this project: take them from PostgreSQL's source. Two fresh servers run the schedule side
 * by side, file by file; outputs are compared with each other, not with the expected ones, so that a test which fails
 * on both (for want of its shared library, or of the very version) says nothing against the proxy.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, open, readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { EmbeddedServer, SUPERUSER } from '../src/app/demo/embedded-server.js';
import { systemClock } from '../src/core/clock.js';
import { silentLog } from '../src/core/log.js';
import { WHOLE_DATABASE, type Side } from '../src/core/ports.js';
import { connectControl } from '../src/core/postgres.js';
import { POOL_MODES, type PoolMode } from '../src/proxy/pool/pool-settings.js';
import type { Proxy } from '../src/proxy/proxy-interface.js';
import { createProxy } from '../src/proxy/proxy.js';
import { PROXY_DEFAULTS } from '../src/proxy/settings.js';

const DATABASE = 'regression';
const FILE_TIMEOUT_MS = 300_000;

interface Options {
  readonly folder: string;
  readonly version: 14 | 18;
  readonly mode: PoolMode;
  readonly only: readonly string[] | null;
  /** Folder for the outputs. */
  readonly keep: string;
}

function readOptions(): Options {
  const { values } = parseArgs({
    options: {
      dir: { type: 'string' },
      version: { type: 'string', default: '14' },
      mode: { type: 'string', default: 'session' },
      only: { type: 'string' },
      keep: { type: 'string' },
    },
  });
  if (values.dir === undefined)
    throw new Error('name the folder src/test/regress of PostgreSQL’s source: --dir');
  return {
    folder: resolve(values.dir),
    version: values.version === '18' ? 18 : 14,
    mode: POOL_MODES.find((mode) => mode === values.mode) ?? 'session',
    only: values.only?.split(',') ?? null,
    keep: resolve(values.keep ?? 'build/regress'),
  };
}

/** Names of the tests in the order of the schedule. */
async function schedule(folder: string): Promise<string[]> {
  const text = await readFile(join(folder, 'parallel_schedule'), 'utf8');
  return text
    .split('\n')
    .filter((line) => line.startsWith('test:'))
    .flatMap((line) => line.slice('test:'.length).trim().split(/\s+/));
}

async function startServer(version: 14 | 18): Promise<EmbeddedServer> {
  const server = await EmbeddedServer.create({
    version,
    // As the tests expect: roles without passwords come and go.
    hba: ['host all all 127.0.0.1/32 trust', 'host replication all 127.0.0.1/32 trust'],
    settings: { fsync: 'off', max_prepared_transactions: '2', max_connections: '50' },
  });
  const control = await connectControl(
    'source',
    { host: server.host, port: server.port, database: 'postgres', user: SUPERUSER, tls: 'disable' },
    { purpose: 'compare' },
  );
  await control.query(`CREATE DATABASE ${DATABASE} TEMPLATE template0 LOCALE 'C'`);
  for (const setting of ['lc_messages', 'lc_monetary', 'lc_numeric', 'lc_time', 'timezone_abbreviations']) {
    const value = setting === 'timezone_abbreviations' ? 'Default' : 'C';
    await control.query(`ALTER DATABASE ${DATABASE} SET ${setting} = '${value}'`);
  }
  await control.end();
  return server;
}

async function startProxy(
  server: EmbeddedServer,
  poolMode: PoolMode,
): Promise<{ readonly proxy: Proxy; readonly port: number }> {
  const target = (side: Side) =>
    ({
      endpoint: { side, host: server.host, port: server.port, tls: 'disable' },
      database: DATABASE,
    }) as const;
  const proxy = createProxy(
    { ...PROXY_DEFAULTS, port: 0, authentication: 'trust', pool: { ...PROXY_DEFAULTS.pool, poolMode } },
    {
      source: target('source'),
      destination: target('destination'),
      verifiers: { lookup: () => Promise.resolve(null) },
      tap: null,
      log: silentLog,
      clock: systemClock,
      customSettings: () => [],
      statefulFunctions: () => [],
    },
  );
  const { port } = await proxy.start();
  proxy.setRoute(WHOLE_DATABASE, { side: 'source', epoch: 0 });
  return { proxy, port };
}

/** As pg_regress calls psql. */
async function runFile(options: Options, name: string, port: number, output: string): Promise<string> {
  const { folder } = options;
  const input = await open(join(folder, 'sql', `${name}.sql`));
  // One file for both, so that errors stand where they came.
  const file = await open(output, 'w');
  const args = ['-X', '-a', '-q', '-d', DATABASE, '-v', 'HIDE_TABLEAM=on', '-v', 'HIDE_TOAST_COMPRESSION=on'];
  const child = spawn('psql', args, {
    stdio: [input.fd, file.fd, file.fd],
    timeout: FILE_TIMEOUT_MS,
    env: {
      ...process.env,
      PGHOST: '127.0.0.1',
      PGPORT: String(port),
      PGUSER: SUPERUSER,
      PGTZ: 'PST8PDT',
      PGDATESTYLE: 'Postgres, MDY',
      PGOPTIONS: '-c intervalstyle=postgres_verbose',
      PGAPPNAME: `pg_regress/${name}`,
      PG_ABS_SRCDIR: folder,
      PG_ABS_BUILDDIR: folder,
      PG_LIBDIR: folder,
      PG_DLSUFFIX: '.so',
    },
  });
  const [code, signal] = (await once(child, 'close')) as [number | null, string | null];
  await input.close();
  await file.close();
  return `${await readFile(output, 'latin1')}\n(psql ended with ${code ?? signal})\n`;
}

async function main(): Promise<void> {
  const options = readOptions();
  const names = (await schedule(options.folder)).filter((name) => options.only?.includes(name) ?? true);
  const direct = await startServer(options.version);
  const behind = await startServer(options.version);
  const { proxy, port } = await startProxy(behind, options.mode);
  const different: string[] = [];
  await mkdir(options.keep, { recursive: true });
  try {
    for (const name of names) {
      const [one, other] = await Promise.all([
        runFile(options, name, direct.port, join(options.keep, `${name}.direct.out`)),
        runFile(options, name, port, join(options.keep, `${name}.proxied.out`)),
      ]);
      const same = one === other.replaceAll(`port "${port}"`, `port "${direct.port}"`);
      console.log(`${same ? 'same     ' : 'different'}  ${name}  ${one.length}`);
      if (!same) different.push(name);
    }
  } finally {
    await proxy.stop({ drainTimeoutMs: 0 });
    await direct[Symbol.asyncDispose]();
    await behind[Symbol.asyncDispose]();
  }
  console.log(`${names.length - different.length} of ${names.length} files with the same output`);
  if (different.length > 0) console.log(`different: ${different.join(', ')}`);
  process.exitCode = different.length === 0 ? 0 : 1;
}

await main();
