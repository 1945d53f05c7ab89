import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { openServerSocket } from '../../src/core/server-socket.js';

test('a server that leaves while certificates are read has left, and is not waited for', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'understudy-fifo-'));
  const tlsCa = join(folder, 'ca.pem');
  // Read only once somebody writes.
  execFileSync('mkfifo', [tlsCa]);
  const server = net.createServer((socket) => {
    socket.on('error', () => undefined);
    socket.once('data', () => socket.write('S'));
    setTimeout(() => socket.destroy(), 200);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  try {
    const { port } = server.address() as net.AddressInfo;
    const opening = openServerSocket(
      'source',
      { host: '127.0.0.1', port, tls: 'require', tlsFiles: { tlsCa } },
      'tls',
      AbortSignal.timeout(1_500),
    );
    const outcome = opening.then(
      () => 'open',
      (error: unknown) => String(error),
    );
    await new Promise((resolve) => setTimeout(resolve, 500));
    await writeFile(tlsCa, 'none');
    const late = new Promise((resolve) => setTimeout(() => resolve('never settled'), 3_000));
    expect(await Promise.race([outcome, late])).toContain('the connection was closed');
  } finally {
    server.close();
    await rm(folder, { recursive: true });
  }
});
