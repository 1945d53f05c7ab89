/**
 * Where clients come in: a TCP port, and where a folder is configured, the unix socket that PostgreSQL's clients look
 * for there.
 *
 * The socket is bound under a name of its own, given its permissions, and then renamed to the known one: it replaces
 * what a killed process left behind, there is no moment at which it is open to more users than it should be, and the
 * runtime, which removes the name a socket was bound to, can't remove another process's. A socket that still answers
 * is never replaced.
 *
 * A connection is complete before it is accepted, and closing a port resets those the kernel still has in its queue. So
 * before it is closed the queue is emptied; what comes in the moment between the last look and the close is reset.
 */
import { once } from 'node:events';
import { chmodSync, renameSync, rmSync, statSync, unlinkSync } from 'node:fs';
import net from 'node:net';
import { dirname, join } from 'node:path';
import { asUnderstudyError, UnderstudyError } from '../core/errors.js';
import type { Log } from '../core/log.js';
import { socketPath } from '../core/server-socket.js';
import type { Door, ListenAddress } from './proxy-interface.js';

/** SO_REUSEPORT came to `listen` with Node 22.12 and 23.1; older ones ignore the option without a word. */
export function canReusePort(version: string = process.versions.node): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  return major > 23 || (major === 23 && minor >= 1) || (major === 22 && minor >= 12);
}

/** The longest path of a unix socket on Linux, in bytes; macOS takes 103. */
const PATH_BYTES_MAX = process.platform === 'darwin' ? 103 : 107;

/** The runtime accepts one connection in a turn of its event loop; as many as the kernel's queue holds, and more. */
const LAST_TURNS_MAX = 2048;
/** A turn with nothing else to do: what comes between its look at the queue and its end has hardly any time to. */
const SHORT_TURN_MS = 0.25;
/** For such a turn to come by. */
const SHORT_TURN_WITHIN_MS = 200;

export class Listener implements Door {
  readonly #tcp: net.Server;
  readonly #unix: net.Server;
  readonly #log: Log;
  /** Path and inode of the socket, once it stands. */
  #socket: { readonly path: string; readonly inode: bigint } | undefined;
  #accepted = 0;
  #shut: Promise<void> | undefined;

  /** `untouched`: nothing is read of what comes in, so that it can be handed to another process. */
  constructor(
    onConnection: (socket: net.Socket) => void,
    log: Log,
    { untouched = false }: { readonly untouched?: boolean } = {},
  ) {
    this.#log = log;
    const pauseOnConnect = untouched;
    const enter = (socket: net.Socket): void => {
      this.#accepted += 1;
      onConnection(socket);
    };
    this.#tcp = net.createServer({ noDelay: true, keepAlive: true, pauseOnConnect }, enter);
    this.#unix = net.createServer({ pauseOnConnect }, enter);
  }

  async start(address: ListenAddress): Promise<void> {
    const { host, port } = address;
    try {
      this.#tcp.listen({ port, host, ...(address.reusePort === true ? shared() : {}) });
      await once(this.#tcp, 'listening');
      if (address.socketDir !== undefined) {
        await this.#openSocket(socketPath(address.socketDir, this.#port ?? port), address.socketMode);
      }
    } catch (error) {
      await this.stop();
      if (error instanceof UnderstudyError) throw error;
      if ((error as NodeJS.ErrnoException).code === 'EADDRINUSE') {
        throw new UnderstudyError('port-in-use', `port ${port} on ${host} is taken by another process`, {
          cause: error,
          advice: 'Stop that process, or choose another listen.port.',
        });
      }
      throw asUnderstudyError(error, 'config-invalid', `listening on ${host}:${port}`);
    }
    for (const server of [this.#tcp, this.#unix]) {
      server.on('error', (error) => this.#log.error({ error: error.message }, 'listener'));
    }
  }

  get address(): { readonly host: string; readonly port: number } | undefined {
    const address = this.#tcp.address();
    if (address === null || typeof address === 'string') return undefined;
    return { host: address.address, port: address.port };
  }

  get #port(): number | undefined {
    return this.address?.port;
  }

  async #openSocket(path: string, mode: number): Promise<void> {
    if (Buffer.byteLength(path) > PATH_BYTES_MAX) {
      throw new UnderstudyError(
        'config-invalid',
        `the socket’s path ${path} is longer than ${PATH_BYTES_MAX} bytes`,
        {
          advice: 'Choose a shorter listen.socketDir.',
        },
      );
    }
    if (await answers(path)) {
      throw new UnderstudyError('port-in-use', `another process listens on ${path}`, {
        advice: 'Stop that process, or choose another listen.port or listen.socketDir.',
      });
    }
    const own = join(dirname(path), `.u${process.pid}`);
    try {
      rmSync(own, { force: true });
      this.#unix.listen(own);
      await once(this.#unix, 'listening');
      chmodSync(own, mode);
      const { ino } = statSync(own, { bigint: true });
      renameSync(own, path);
      this.#socket = { path, inode: ino };
    } catch (error) {
      throw asUnderstudyError(error, 'config-invalid', `opening the socket ${path}`);
    }
  }

  /** Resolves once nobody gets in any more; who had come by then has been handed on. */
  shut(): Promise<void> {
    this.#shut ??= this.#closePorts();
    return this.#shut;
  }

  async #closePorts(): Promise<void> {
    const socket = this.#socket;
    this.#socket = undefined;
    if (socket !== undefined && inodeOf(socket.path) === socket.inode) unlinkSync(socket.path);
    const servers = this.#listening();
    if (servers.length === 0) return;
    // The first turn may be under way already, past the moment at which it looks.
    await nextTurn();
    const beganMs = performance.now();
    for (let turn = 0; turn < LAST_TURNS_MAX; turn++) {
      const before = this.#accepted;
      const turnedMs = performance.now();
      await nextTurn();
      const nowMs = performance.now();
      const short = nowMs - turnedMs < SHORT_TURN_MS || nowMs - beganMs > SHORT_TURN_WITHIN_MS;
      if (before === this.#accepted && short) break;
    }
    for (const server of servers) server.close();
  }

  /** As `shut`, and resolves once those that came in are gone. */
  async stop(): Promise<void> {
    const closed = this.#listening().map((server) => once(server, 'close'));
    await this.shut();
    await Promise.all(closed);
  }

  #listening(): readonly net.Server[] {
    return [this.#tcp, this.#unix].filter((server) => server.listening);
  }
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** Throws `config-invalid` where the runtime can't. */
function shared(): { readonly reusePort: true } {
  if (canReusePort()) return { reusePort: true };
  throw new UnderstudyError(
    'config-invalid',
    `listen.reusePort needs Node 22.12, 23.1 or newer; this is ${process.version}`,
    { advice: 'Leave it off, and hand over as docs/runbook.md says for older ones.' },
  );
}

/** Whether somebody accepts connections there. Throws where it can't be told. */
async function answers(path: string): Promise<boolean> {
  const socket = net.connect({ path });
  socket.on('error', () => undefined);
  try {
    await once(socket, 'connect');
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    // Nothing there, or a socket that a killed process has left.
    if (code === 'ENOENT' || code === 'ECONNREFUSED') return false;
    throw asUnderstudyError(error, 'config-invalid', `the socket ${path}`);
  } finally {
    socket.destroy();
  }
}

function inodeOf(path: string): bigint | undefined {
  try {
    return statSync(path, { bigint: true }).ino;
  } catch {
    return undefined;
  }
}
