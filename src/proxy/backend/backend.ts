/**
 * Opens a server connection in a client's name, up to its first ReadyForQuery.
 *
 *  1. TCP or unix socket, then TLS as the endpoint's mode asks; a mode may allow two ways, see core/server-socket.ts.
 *  2. StartupMessage; the server asks for a proof; the credentials give it, where they can.
 *  3. AuthenticationOk, ParameterStatus…, BackendKeyData, ReadyForQuery.
 *
 * Failure cases, all of them a {@link BackendRefused} that carries what the client should be told: the server's own
 * ErrorResponse, passed on as it came; a server that can't be reached, does not answer in time or goes away (08006,
 * naming the side); a server that wants a proof the credentials don't hold, or that can't prove itself (28000); bytes
 * that are not the protocol (08P01). The socket is destroyed in each. One deadline covers everything.
 */
import type net from 'node:net';
import { TLSSocket } from 'node:tls';
import { endpointBinding } from '../../core/certificate-hash.js';
import { UnderstudyError } from '../../core/errors.js';
import type { ChannelBinding, ServerAddress, Side } from '../../core/ports.js';
import {
  openServerSocket,
  overEachWay,
  reasonOf,
  SocketRefused,
  waysOf,
  type Way,
} from '../../core/server-socket.js';
import {
  BACKEND,
  FRAME_HEADER_BYTES,
  parseBackendKeyData,
  parseErrorFields,
  parseParameterStatus,
} from '../../wire/postgres/messages.js';
import {
  CANCEL_KEY_BYTES_MAX,
  encodeCancelRequest,
  encodeStartup,
  parseNegotiateProtocolVersion,
} from '../../wire/postgres/startup.js';
import { proveIdentity, type ProofLine } from './backend-proof.js';
import { BackendRefused, refusedBecause, unreachableBecause } from './backend-refused.js';
import type { BackendCredentials } from '../login/credentials.js';
import { PeerGone, SocketReader } from '../socket-reader.js';

/** Where to open a connection in a client's name. Keep the object: what TLS needs is cached by its identity. */
export interface BackendEndpoint extends ServerAddress {
  /** Only for messages: which of the two could not be reached. */
  readonly side: Side;
}

export interface BackendStartup {
  readonly user: string;
  readonly database: string;
  /** Further startup parameters, as the client sent them. */
  readonly parameters: ReadonlyMap<string, string>;
  /** Of protocol 3: what to ask the server for; 0 where absent. It may answer with less. */
  readonly protocolMinor?: number;
}

export interface BackendOptions {
  /** For everything from the TCP connection to ReadyForQuery. */
  readonly connectTimeoutMs: number;
  /** Gives up and throws `cancelled`. */
  readonly signal?: AbortSignal;
}

/** A server connection that has answered ReadyForQuery and waits for its first statement. */
export interface Backend {
  /** Plain or TLS; explicitly paused (call `resume()`), with no listener but a no-op for `error`. It may have been
   *  destroyed already: check `destroyed` after attaching listeners. */
  readonly socket: net.Socket;
  readonly endpoint: BackendEndpoint;
  /** ParameterStatus values seen while connecting. */
  readonly parameters: Map<string, string>;
  readonly processId: number;
  /** As BackendKeyData carried it: 4 bytes, or up to 256 from protocol 3.2 on. */
  readonly secretKey: Buffer;
  /** Of protocol 3, as the server agreed to. */
  readonly protocolMinor: number;
  /** Bytes read past ReadyForQuery; to be treated as the first data from the server. Always empty at present. */
  readonly leftover: Buffer;
  /** NoticeResponse frames seen while connecting, as they came, to be relayed. */
  readonly notices: Buffer;
}

/** Bound on one message, and on all notices together, while connecting. */
const STARTUP_MESSAGE_BYTES_MAX = 1024 * 1024;
/** The server goes, comes or is full: another try may be met otherwise. */
const RETRYABLE_STATES: readonly string[] = ['57P01', '57P02', '57P03', '53300'];

/**
 * Connects, authenticates, and waits for ReadyForQuery.
 * Throws {@link BackendRefused}; `cancelled` where the signal fired.
 */
export async function openBackend(
  endpoint: BackendEndpoint,
  startup: BackendStartup,
  credentials: BackendCredentials,
  options: BackendOptions,
): Promise<Backend> {
  return await withinDeadline(endpoint, options, (signal) =>
    overEachWay(
      endpoint,
      (way) =>
        onLine(endpoint, way, signal, async (line) => {
          const { user, database, parameters, protocolMinor = 0 } = startup;
          line.send(encodeStartup(user, database, parameters, protocolMinor));
          line.protocolMinor = protocolMinor;
          await proveIdentity(line, user, credentials);
          const settled = await awaitReady(line);
          return {
            endpoint,
            ...settled,
            protocolMinor: line.protocolMinor,
            socket: await line.handOver(),
            leftover: NOTHING,
          };
        }),
      serverSqlState,
    ),
  );
}

/**
 * Asks the server to cancel what `processId` runs. Resolves once the server has closed the cancel connection, which
 * it does after having sent its signal. Throws {@link BackendRefused} where it can't be reached within `timeoutMs`.
 */
export async function sendCancel(
  endpoint: BackendEndpoint,
  processId: number,
  secretKey: Buffer,
  timeoutMs: number,
): Promise<void> {
  await withinDeadline(endpoint, { connectTimeoutMs: timeoutMs }, (signal) =>
    // A server takes cancel requests over any way, whatever its pg_hba.conf says.
    onLine(endpoint, waysOf(endpoint)[0], signal, async (line) => {
      line.send(encodeCancelRequest(processId, secretKey));
      await line.awaitEnd();
      line.destroy();
    }),
  );
}

/**
 * Asks the server which minor version of protocol 3 it speaks, at most `minor`, without logging in. Throws
 * {@link BackendRefused}.
 */
export async function probeProtocolMinor(
  endpoint: BackendEndpoint,
  startup: Pick<BackendStartup, 'user' | 'database'>,
  minor: number,
  timeoutMs: number,
): Promise<number> {
  return await withinDeadline(endpoint, { connectTimeoutMs: timeoutMs }, (signal) =>
    overEachWay(
      endpoint,
      (way) =>
        onLine(endpoint, way, signal, async (line) => {
          line.send(encodeStartup(startup.user, startup.database, [], minor));
          line.protocolMinor = minor;
          // What it agreed to comes before its request for a proof.
          await line.receive();
          line.destroy();
          return line.protocolMinor;
        }),
      serverSqlState,
    ),
  );
}

function serverSqlState(error: unknown): string | undefined {
  return error instanceof BackendRefused && error.byServer ? error.sqlState : undefined;
}

/** Runs `work`, whose signal fires at the deadline or with the caller's own. Throws {@link BackendRefused}. */
async function withinDeadline<T>(
  endpoint: BackendEndpoint,
  options: BackendOptions,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const { signal, connectTimeoutMs } = options;
  const cancelled = (): UnderstudyError =>
    new UnderstudyError('cancelled', 'connecting was cancelled', { cause: signal?.reason });
  if (signal?.aborted === true) throw cancelled();
  const over = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  let onAbort = (): void => undefined;
  const stopped = new Promise<never>((_resolve, reject) => {
    onAbort = () => reject(cancelled());
    timer = setTimeout(
      () => reject(unreachableBecause(endpoint, `no answer within ${connectTimeoutMs} ms`)),
      connectTimeoutMs,
    );
    signal?.addEventListener('abort', onAbort, { once: true });
  });
  try {
    return await Promise.race([stopped, work(over.signal)]);
  } catch (error) {
    over.abort();
    throw asRefused(endpoint, error);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', onAbort);
  }
}

/** Runs `work` on a new line; the line is destroyed unless `work` succeeds, and when the signal fires. */
async function onLine<T>(
  endpoint: BackendEndpoint,
  way: Way,
  signal: AbortSignal,
  work: (line: ServerLine) => Promise<T>,
): Promise<T> {
  const line = new ServerLine(endpoint, await openServerSocket(endpoint.side, endpoint, way, signal));
  const onAbort = (): void => line.destroy();
  signal.addEventListener('abort', onAbort, { once: true });
  if (signal.aborted) onAbort();
  try {
    return await work(line);
  } catch (error) {
    line.destroy();
    throw error;
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}

interface ServerMessage {
  readonly type: number;
  readonly payload: Buffer;
}

/** One connection to a server, from its first protocol message until it is handed over or destroyed. */
class ServerLine implements ProofLine {
  readonly server: BackendEndpoint;
  readonly channelBinding: ChannelBinding;
  /** What was asked for, and what the server agreed to once it has said so. */
  protocolMinor = 0;
  readonly #notices: Buffer[] = [];
  #noticeBytes = 0;
  readonly #socket: net.Socket;
  readonly #reader: SocketReader;

  constructor(endpoint: BackendEndpoint, socket: net.Socket) {
    this.server = endpoint;
    this.channelBinding = endpoint.channelBinding ?? 'prefer';
    this.#socket = socket;
    this.#reader = new SocketReader(socket);
  }

  get notices(): Buffer {
    return Buffer.concat(this.#notices);
  }

  get encrypted(): boolean {
    return this.#socket instanceof TLSSocket;
  }

  get endpointBinding(): Buffer | null {
    if (!(this.#socket instanceof TLSSocket)) return null;
    return endpointBinding(this.#socket.getPeerCertificate().raw);
  }

  send(frame: Buffer): void {
    this.#socket.write(frame);
  }

  /** The next message that is not a notice. Throws {@link BackendRefused} for an ErrorResponse. */
  async receive(): Promise<ServerMessage> {
    const reader = this.#reader;
    for (;;) {
      const header = await reader.read(FRAME_HEADER_BYTES);
      const bytes = header.readUInt32BE(1) - 4;
      if (bytes < 0 || bytes > STARTUP_MESSAGE_BYTES_MAX) {
        throw new UnderstudyError('protocol-violation', `a message of ${bytes} bytes while connecting`);
      }
      const payload = bytes === 0 ? Buffer.alloc(0) : await reader.read(bytes);
      const type = header.readUInt8(0);
      if (type === BACKEND.errorResponse) throw this.#refusal(header, payload);
      if (type === BACKEND.negotiateProtocolVersion) {
        this.#negotiated(payload);
        continue;
      }
      if (type !== BACKEND.noticeResponse) return { type, payload };
      this.#noticeBytes += bytes;
      if (this.#noticeBytes > STARTUP_MESSAGE_BYTES_MAX) {
        throw new UnderstudyError('protocol-violation', 'too many notices while connecting');
      }
      this.#notices.push(header, payload);
    }
  }

  #negotiated(payload: Buffer): void {
    const minor = parseNegotiateProtocolVersion(payload);
    if (minor >= this.protocolMinor) {
      throw new UnderstudyError(
        'protocol-violation',
        `negotiation to protocol 3.${minor}, which was not asked for`,
      );
    }
    this.protocolMinor = minor;
  }

  #refusal(header: Buffer, payload: Buffer): BackendRefused {
    const { sqlState, message } = parseErrorFields(payload);
    const { side } = this.server;
    return new BackendRefused(
      'backend-refused',
      `the ${side} refused the connection: ${message}`,
      { response: Buffer.concat([header, payload]), sqlState, byServer: true },
      { retryable: RETRYABLE_STATES.includes(sqlState), details: { side, sqlState } },
    );
  }

  async awaitEnd(): Promise<void> {
    try {
      await this.#reader.read(1);
    } catch (error) {
      if (!(error instanceof PeerGone)) throw error;
    }
  }

  /** The socket, free of listeners and paused. */
  async handOver(): Promise<net.Socket> {
    await this.#reader.detach();
    return this.#socket;
  }

  destroy(): void {
    this.#socket.destroy();
  }
}

const NOTHING = Buffer.alloc(0);
const TEXTS_MAX = 1000;
const texts = new Map<string, string>();

/** Settings are much the same on all connections: one copy of each text will do. */
function shared(text: string): string {
  const known = texts.get(text);
  if (known !== undefined) return known;
  if (texts.size >= TEXTS_MAX) texts.clear();
  texts.set(text, text);
  return text;
}

/** Not a piece of Node's pool, which would be held as a whole for as long as the connection lives. */
function ownCopy(bytes: Buffer): Buffer {
  const copy = Buffer.alloc(bytes.length);
  bytes.copy(copy);
  return copy;
}

async function awaitReady(
  line: ServerLine,
): Promise<Pick<Backend, 'parameters' | 'processId' | 'secretKey' | 'notices'>> {
  const parameters = new Map<string, string>();
  let key: { readonly pid: number; readonly secret: Buffer } | undefined;
  for (;;) {
    const { type, payload } = await line.receive();
    switch (type) {
      case BACKEND.parameterStatus: {
        const { name, value } = parseParameterStatus(payload);
        parameters.set(shared(name), shared(value));
        break;
      }
      case BACKEND.backendKeyData:
        key = parseBackendKeyData(payload);
        if (key.secret.length > CANCEL_KEY_BYTES_MAX) {
          throw new UnderstudyError('protocol-violation', `a cancel key of ${key.secret.length} bytes`);
        }
        break;
      case BACKEND.readyForQuery:
        return {
          parameters,
          processId: key?.pid ?? 0,
          secretKey: key === undefined ? NOTHING : ownCopy(key.secret),
          notices: line.notices,
        };
      default:
        throw new UnderstudyError('protocol-violation', `message type ${type} in place of ReadyForQuery`);
    }
  }
}

function asRefused(endpoint: BackendEndpoint, error: unknown): UnderstudyError {
  if (error instanceof BackendRefused) return error;
  if (error instanceof SocketRefused) {
    return unreachableBecause(endpoint, error.reason, error.why === 'no-tls' ? '08001' : '08006', error);
  }
  if (error instanceof PeerGone || !(error instanceof UnderstudyError)) {
    return unreachableBecause(endpoint, reasonOf(error));
  }
  if (error.code !== 'protocol-violation') return error;
  return refusedBecause(
    endpoint,
    { sqlState: '08P01', message: `the ${endpoint.side} does not speak the protocol: ${error.message}` },
    'backend-refused',
    { cause: error },
  );
}
