/** PgBouncer in session mode, the peer: one client connection, one server connection, as Understudy's proxy. */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { freePort } from '../../src/app/demo/embedded-server.js';
import { findProgram } from './program.js';
import type { Account, ServerAddress } from './pgbench.js';

export interface RunningPgbouncer extends AsyncDisposable {
  readonly address: ServerAddress;
  readonly version: string;
}

/** undefined where `pgbouncer` is not on PATH. `verifier`: the account's SCRAM secret as the server stores it. */
export async function startPgbouncer(
  server: ServerAddress,
  account: Account,
): Promise<RunningPgbouncer | undefined> {
  const program = findProgram('pgbouncer');
  if (program === undefined) return undefined;
  const version = execFileSync(program, ['--version'], { encoding: 'utf8' }).split('\n', 1)[0] ?? 'PgBouncer';
  const folder = await mkdtemp(join(tmpdir(), 'understudy-pgbouncer-'));
  const port = await freePort();
  const users = join(folder, 'users.txt');
  const config = join(folder, 'pgbouncer.ini');
  await writeFile(users, `"${account.user}" "${account.password}"\n`);
  await writeFile(
    config,
    [
      '[databases]',
      `${account.database} = host=${server.host} port=${server.port}`,
      '[pgbouncer]',
      'listen_addr = 127.0.0.1',
      `listen_port = ${port}`,
      'unix_socket_dir =',
      'auth_type = scram-sha-256',
      `auth_file = ${users}`,
      'pool_mode = session',
      'default_pool_size = 200',
      'max_client_conn = 400',
      'log_connections = 0',
      'log_disconnections = 0',
      '',
    ].join('\n'),
  );
  await chmod(folder, 0o755);
  // It refuses to run as root.
  const asUser = process.getuid?.() === 0 ? ['-u', 'nobody'] : [];
  const child = spawn(program, ['-q', ...asUser, config], { cwd: folder, stdio: 'ignore' });
  const dispose = async (): Promise<void> => {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill('SIGKILL');
      await once(child, 'exit');
    }
    await rm(folder, { recursive: true, force: true });
  };
  try {
    await untilListening(port);
  } catch (error) {
    await dispose();
    throw error;
  }
  return { address: { name: 'pgbouncer', host: '127.0.0.1', port }, version, [Symbol.asyncDispose]: dispose };
}

async function untilListening(port: number): Promise<void> {
  for (let attempt = 0; attempt < 100; attempt++) {
    const socket = connect(port, '127.0.0.1');
    try {
      await once(socket, 'connect');
      return;
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 50));
    } finally {
      socket.destroy();
    }
  }
  throw new Error('PgBouncer does not listen');
}
