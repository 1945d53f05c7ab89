/** HAProxy in TCP mode: what a proxy costs that knows nothing of the protocol. */
import { execFileSync } from 'node:child_process';
import { mkdtemp, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { freePort } from '../../src/app/demo/embedded-server.js';
import { Peer } from './peer.js';
import type { ServerAddress } from './pgbench.js';
import { findProgram } from './program.js';

export interface HaproxyProgram {
  readonly path: string;
  readonly version: string;
}

export function findHaproxy(): HaproxyProgram | undefined {
  const path = findProgram('haproxy');
  if (path === undefined) return undefined;
  const version = /version (\S+)/.exec(execFileSync(path, ['-v'], { encoding: 'utf8' }))?.[1] ?? '';
  return { path, version: `HAProxy ${version}` };
}

/** One thread for each core, which is its own default. */
export async function startHaproxy(
  program: HaproxyProgram,
  parent: string,
  server: ServerAddress,
): Promise<Peer> {
  const folder = await mkdtemp(join(parent, 'haproxy-'));
  const port = await freePort();
  const config = join(folder, 'haproxy.cfg');
  await writeFile(
    config,
    [
      'global',
      '  maxconn 4000',
      'defaults',
      '  mode tcp',
      '  timeout connect 5s',
      '  timeout client 1h',
      '  timeout server 1h',
      'frontend clients',
      `  bind 127.0.0.1:${port}`,
      '  default_backend server',
      'backend server',
      `  server postgres ${server.host}:${server.port}`,
      '',
    ].join('\n'),
  );
  return await Peer.start(program.path, ['-q', '-db', '-f', config], { folder, port });
}
