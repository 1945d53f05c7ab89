/** A TCP relay before a real server, which can lose the answer to a COMMIT, or the COMMIT itself, or everything. */
import { once } from 'node:events';
import { createServer, connect, type Server, type Socket } from 'node:net';
import type { DatabaseEndpoint } from '../../src/core/ports.js';

/** The simple Query message that says COMMIT and nothing else. */
const COMMIT = Buffer.concat([Buffer.from('Q'), Buffer.from([0, 0, 0, 11]), Buffer.from('COMMIT\0')]);

export type Loss =
  /** The server commits; its answer is not passed on, and the connection is cut. */
  | 'answer'
  /** The COMMIT is not passed on, and the connection is cut. */
  | 'commit'
  /** The COMMIT is not passed on, and the server is told nothing, not even when the client gives up: a lost network. */
  | 'silence';

export class Relay implements AsyncDisposable {
  readonly #server: Server;
  readonly #to: DatabaseEndpoint;
  readonly #pairs = new Set<readonly [Socket, Socket]>();
  #loss: Loss | undefined;
  #down = false;
  #downAfter = false;
  lost = 0;

  private constructor(server: Server, to: DatabaseEndpoint) {
    this.#server = server;
    this.#to = to;
    server.on('connection', (client) => this.#onConnection(client));
  }

  static async open(to: DatabaseEndpoint): Promise<Relay> {
    const server = createServer();
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return new Relay(server, to);
  }

  get endpoint(): DatabaseEndpoint {
    const address = this.#server.address();
    if (address === null || typeof address === 'string') throw new Error('not listening');
    return { ...this.#to, host: '127.0.0.1', port: address.port };
  }

  /** Loses the next COMMIT in this way, and, if asked, everything after it until {@link restore}. */
  lose(loss: Loss, thenDown = false): void {
    this.#loss = loss;
    this.#downAfter = thenDown;
  }

  /** From now on nobody gets through; what is open is cut. */
  cut(): void {
    this.#down = true;
    for (const [client, server] of this.#pairs) {
      client.destroy();
      server.destroy();
    }
  }

  restore(): void {
    this.#down = false;
  }

  #onConnection(client: Socket): void {
    if (this.#down) {
      client.destroy();
      return;
    }
    const server = connect(this.#to.port, this.#to.host);
    const pair = [client, server] as const;
    this.#pairs.add(pair);
    let swallow = false;
    let silent = false;
    const close = (): void => {
      if (silent) return;
      this.#pairs.delete(pair);
      client.destroy();
      server.destroy();
    };
    for (const socket of pair) {
      socket.setNoDelay(true);
      socket.on('error', close);
      socket.on('close', close);
    }
    client.on('data', (data) => {
      if (this.#loss === undefined || !data.equals(COMMIT)) {
        server.write(data);
        return;
      }
      const loss = this.#loss;
      this.#loss = undefined;
      this.lost++;
      this.#down = this.#downAfter;
      swallow = true;
      silent = loss === 'silence';
      if (loss === 'answer') server.write(data);
      if (loss === 'commit') close();
    });
    server.on('data', (data) => {
      if (swallow) close();
      else client.write(data);
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
    this.#server.close();
    await once(this.#server, 'close');
  }
}
