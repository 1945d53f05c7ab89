/** A TCP relay that hands on what a server says in small pieces, each in a turn of the loop of its own. */
import { once } from 'node:events';
import net from 'node:net';

/** Length of the piece at an offset of a chunk: single bytes first, then ever larger, so that bulk takes no minutes. */
export function pieceBytes(at: number): number {
  if (at < 64) return 1;
  if (at < 512) return 13;
  return at < 8192 ? 1021 : 16_381;
}

export interface SplittingRelay extends AsyncDisposable {
  readonly port: number;
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Relays loopback connections to `port`; what clients say passes as it comes. */
export async function startSplittingRelay(port: number): Promise<SplittingRelay> {
  const open = new Set<net.Socket>();
  const server = net.createServer({ allowHalfOpen: true }, (client) => {
    const upstream = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true, noDelay: true });
    client.setNoDelay(true);
    for (const socket of [client, upstream]) {
      open.add(socket);
      socket.on('error', () => undefined);
      socket.on('close', () => open.delete(socket));
    }
    client.on('close', () => upstream.destroy());
    client.pipe(upstream);
    void dealOut(upstream, client);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as net.AddressInfo).port,
    async [Symbol.asyncDispose]() {
      for (const socket of open) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

async function dealOut(from: net.Socket, to: net.Socket): Promise<void> {
  try {
    for await (const chunk of from as AsyncIterable<Buffer>) {
      for (let at = 0; at < chunk.length;) {
        const piece = pieceBytes(at);
        if (!to.write(chunk.subarray(at, at + piece))) await once(to, 'drain');
        at += piece;
        await turn();
      }
    }
    to.end();
  } catch {
    to.destroy();
  }
}
