import { once } from 'node:events';
import net from 'node:net';

export interface SocketPair {
  /** Paused, as a handshake leaves it. */
  readonly near: net.Socket;
  readonly far: net.Socket;
}

/** Connections of which a test holds both ends, and what else it is to close. */
export function socketPairs(): {
  readonly open: { destroy(): void }[];
  readonly connection: () => Promise<SocketPair>;
  readonly closeAll: () => void;
} {
  const open: { destroy(): void }[] = [];
  return {
    open,
    async connection() {
      const server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true }).listen(0, '127.0.0.1');
      await once(server, 'listening');
      const address = server.address() as net.AddressInfo;
      const far = net.connect({ port: address.port, host: address.address, noDelay: true });
      const [near] = (await once(server, 'connection')) as [net.Socket];
      server.close();
      open.push(near, far);
      return { near, far };
    },
    closeAll() {
      for (const held of open.splice(0)) held.destroy();
    },
  };
}
