import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, open, rm } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { openServerSocket } from '../../src/core/server-socket.js';

test('a connection that is given up while certificates are read is not waited for', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'understudy-fifo-'));
  const tlsCa = join(folder, 'ca.pem');
  // Whoever opens a FIFO waits until somebody opens its other end.
  execFileSync('mkfifo', [tlsCa]);
  const server = net.createServer((socket) => {
    socket.on('error', () => undefined);
    socket.once('data', () => socket.write('S'));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const giveUp = new AbortController();
  try {
    const { port } = server.address() as net.AddressInfo;
    const opening = openServerSocket(
      'source',
      { host: '127.0.0.1', port, tls: 'require', tlsFiles: { tlsCa } },
      'tls',
      giveUp.signal,
    );
    const refused = expect(opening).rejects.toThrow('the connection was closed');
    const file = await open(tlsCa, 'w');
    giveUp.abort();
    await file.writeFile('none');
    await file.close();
    await refused;
  } finally {
    server.close();
    await rm(folder, { recursive: true });
  }
});
