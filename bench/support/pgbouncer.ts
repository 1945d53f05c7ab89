/** PgBouncer, the peer: in session mode one client has one server connection, in transaction mode they share a pool. */
import { execFileSync } from 'node:child_process';
import { chmod, mkdtemp, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { freePort } from '../../src/app/demo/embedded-server.js';
import { Peer } from './peer.js';
import type { ServerAddress } from './pgbench.js';
import { findProgram } from './program.js';

export type PgbouncerMode = 'session' | 'transaction';

export interface PgbouncerOptions {
  readonly mode: PgbouncerMode;
  /** Where its folder is made. */
  readonly parent: string;
  readonly server: ServerAddress;
  readonly user: string;
  readonly database: string;
  /** The account's SCRAM secret as the server stores it: with it PgBouncer logs clients in, and itself in to the
   *  server, without deriving a key from a password each time. */
  readonly verifier: string;
}

export interface PgbouncerProgram {
  readonly path: string;
  readonly version: string;
  /** Protocol-level prepared statements in transaction mode came with 1.21. */
  readonly preparesInTransactionMode: boolean;
}

export function findPgbouncer(): PgbouncerProgram | undefined {
  const path = findProgram('pgbouncer');
  if (path === undefined) return undefined;
  const version = execFileSync(path, ['--version'], { encoding: 'utf8' }).split('\n', 1)[0] ?? 'PgBouncer';
  const [major = 0, minor = 0] = (/(\d+)\.(\d+)/.exec(version)?.slice(1) ?? []).map(Number);
  return { path, version, preparesInTransactionMode: major > 1 || minor >= 21 };
}

export async function startPgbouncer(program: PgbouncerProgram, options: PgbouncerOptions): Promise<Peer> {
  const folder = await mkdtemp(join(options.parent, 'pgbouncer-'));
  const port = await freePort();
  const users = join(folder, 'users.txt');
  const config = join(folder, 'pgbouncer.ini');
  await writeFile(users, `"${options.user}" "${options.verifier}"\n`);
  const pool =
    options.mode === 'session'
      ? ['pool_mode = session', 'default_pool_size = 1200']
      : [
          // The size of the pool is its own default, 20.
          'pool_mode = transaction',
          ...(program.preparesInTransactionMode ? ['max_prepared_statements = 200'] : []),
        ];
  await writeFile(
    config,
    [
      '[databases]',
      `${options.database} = host=${options.server.host} port=${options.server.port}`,
      '[pgbouncer]',
      'listen_addr = 127.0.0.1',
      `listen_port = ${port}`,
      'unix_socket_dir =',
      'auth_type = scram-sha-256',
      `auth_file = ${users}`,
      ...pool,
      'max_client_conn = 1500',
      'log_connections = 0',
      'log_disconnections = 0',
      '',
    ].join('\n'),
  );
  await chmod(folder, 0o755);
  // It refuses to run as root.
  const asUser = process.getuid?.() === 0 ? ['-u', 'nobody'] : [];
  return await Peer.start(program.path, ['-q', ...asUser, config], { folder, port });
}
