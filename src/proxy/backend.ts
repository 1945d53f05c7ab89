/**
 * Opens a server connection in a client's name, up to its first ReadyForQuery.
 *
 *  1. TCP, then TLS as the endpoint's mode asks.
 *  2. StartupMessage; the server asks for a proof; the credentials give it, where they can.
 *  3. AuthenticationOk, ParameterStatus…, BackendKeyData, ReadyForQuery.
 *
 * Failure cases, all of them a {@link BackendRefused} that carries what the client should be told: the server's own
 * ErrorResponse, passed on as it came; a server that can't be reached, does not answer in time or goes away (08006,
 * naming the side); a server that wants a proof the credentials don't hold, or that can't prove itself (28000); bytes
 * that are not the protocol (08P01). The socket is destroyed in each. One deadline covers everything.
 */
import { randomBytes } from 'node:crypto';
import net from 'node:net';
import { UnderstudyError, unreachable, type ErrorCode, type ErrorContext } from '../core/errors.js';
import type { Side, TlsMode } from '../core/ports.js';
import { md5Response, md5Secret } from '../wire/postgres/md5.js';
import {
  BACKEND,
  encodeErrorResponse,
  FRAME_HEADER_BYTES,
  parseBackendKeyData,
  parseErrorFields,
  parseParameterStatus,
  type ErrorResponseFields,
} from '../wire/postgres/messages.js';
import {
  deriveScramKeys,
  SCRAM_MECHANISM,
  ScramClientExchange,
  type ScramKeys,
} from '../wire/postgres/scram.js';
import {
  encodeCancelRequest,
  encodePassword,
  encodeSaslInitialResponse,
  encodeSaslResponse,
  encodeSslRequest,
  encodeStartup,
  parseAuthentication,
  type AuthenticationMessage,
} from '../wire/postgres/startup.js';
import type { BackendCredentials } from './credentials.js';
import { PeerGone, SocketReader } from './socket-reader.js';
import { upgradeServer } from './tls.js';

/** Where to open a connection in a client's name. Keep the object: what TLS needs is cached by its identity. */
export interface BackendEndpoint {
  /** Only for messages: which of the two could not be reached. */
  readonly side: Side;
  readonly host: string;
  readonly port: number;
  readonly tls: TlsMode;
  /** PEM of the certificate authority that signs the server's certificate; the system's where absent. */
  readonly tlsCa?: string;
}

export interface BackendStartup {
  readonly user: string;
  readonly database: string;
  /** Further startup parameters, as the client sent them. */
  readonly parameters: ReadonlyMap<string, string>;
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
  /** As BackendKeyData carried it. */
  readonly secretKey: Buffer;
  /** Bytes read past ReadyForQuery; to be treated as the first data from the server. Always empty at present. */
  readonly leftover: Buffer;
  /** NoticeResponse frames seen while connecting, as they came, to be relayed. */
  readonly notices: Buffer;
}

/** The server refused, or could not be reached; `response` is the ErrorResponse frame the client should get. */
export class BackendRefused extends UnderstudyError {
  /** A whole frame: the server's own where it sent one, else one made here. Always FATAL. */
  readonly response: Buffer;
  readonly sqlState: string;

  constructor(
    code: ErrorCode,
    message: string,
    answer: { readonly response: Buffer; readonly sqlState: string },
    context: ErrorContext = {},
  ) {
    super(code, message, context);
    this.response = answer.response;
    this.sqlState = answer.sqlState;
  }
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
  return await onLine(endpoint, options, async (line) => {
    await line.connect();
    line.send(encodeStartup(startup.user, startup.database, startup.parameters));
    await authenticate(line, startup.user, credentials);
    const settled = await awaitReady(line);
    return { endpoint, ...settled, socket: await line.handOver(), leftover: Buffer.alloc(0) };
  });
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
  await onLine(endpoint, { connectTimeoutMs: timeoutMs }, async (line) => {
    await line.connect();
    line.send(encodeCancelRequest(processId, secretKey));
    await line.awaitEnd();
    line.destroy();
  });
}

/** Runs `work` on a new line within the deadline; the line is destroyed unless `work` succeeds. */
async function onLine<T>(
  endpoint: BackendEndpoint,
  options: BackendOptions,
  work: (line: ServerLine) => Promise<T>,
): Promise<T> {
  const { signal, connectTimeoutMs } = options;
  const cancelled = (): UnderstudyError =>
    new UnderstudyError('cancelled', 'connecting was cancelled', { cause: signal?.reason });
  if (signal?.aborted === true) throw cancelled();
  const line = new ServerLine(endpoint);
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
    return await Promise.race([stopped, work(line)]);
  } catch (error) {
    line.destroy();
    throw asRefused(endpoint, error);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', onAbort);
  }
}

interface ServerMessage {
  readonly type: number;
  readonly payload: Buffer;
}

/** One connection to a server, from the first SYN until it is handed over or destroyed. */
class ServerLine {
  readonly endpoint: BackendEndpoint;
  readonly #notices: Buffer[] = [];
  #noticeBytes = 0;
  #socket: net.Socket | undefined;
  #reader: SocketReader | undefined;
  #destroyed = false;

  constructor(endpoint: BackendEndpoint) {
    this.endpoint = endpoint;
  }

  get notices(): Buffer {
    return Buffer.concat(this.#notices);
  }

  async connect(): Promise<void> {
    if (this.#destroyed) throw new PeerGone('given up', 0);
    const { host, port, tls } = this.endpoint;
    const socket = net.connect({ host, port, noDelay: true, keepAlive: true });
    this.#socket = socket;
    socket.on('error', () => undefined);
    await new Promise<void>((resolve, reject) => {
      const done = (): void => {
        socket.off('connect', onConnect);
        socket.off('error', onError);
        socket.off('close', onClose);
      };
      const onConnect = (): void => {
        done();
        resolve();
      };
      const onError = (error: Error): void => {
        done();
        reject(new PeerGone(reasonOf(error), 0, error));
      };
      const onClose = (): void => onError(new Error('the connection was closed'));
      socket.on('connect', onConnect);
      socket.on('error', onError);
      socket.on('close', onClose);
    });
    this.#reader = new SocketReader(socket);
    if (tls !== 'disable') await this.#encrypt(socket, this.#reader);
  }

  async #encrypt(socket: net.Socket, reader: SocketReader): Promise<void> {
    this.send(encodeSslRequest());
    const answer = (await reader.read(1)).toString('latin1');
    if (answer === 'N' && this.endpoint.tls === 'prefer') return;
    if (answer === 'N') throw unreachableBecause(this.endpoint, 'it does not offer TLS', '08001');
    // Anything else is no answer to SSLRequest. What an `E` goes on to say could come from anybody on the way and is
    // not passed on (CVE-2024-10977).
    if (answer !== 'S') throw unreachableBecause(this.endpoint, 'it did not answer the request for TLS');
    if (reader.bufferedBytes > 0) {
      // Taken for part of the encrypted connection, these would be somebody else's words (CVE-2021-23222).
      throw unreachableBecause(
        this.endpoint,
        'it sent unencrypted data after its answer to the request for TLS',
      );
    }
    reader.release();
    const secured = await upgradeServer(socket, this.endpoint);
    this.#socket = secured;
    this.#reader = new SocketReader(secured);
    if (this.#destroyed) secured.destroy();
  }

  send(frame: Buffer): void {
    this.#socket?.write(frame);
  }

  /** The next message that is not a notice. Throws {@link BackendRefused} for an ErrorResponse. */
  async receive(): Promise<ServerMessage> {
    const reader = this.#reader;
    if (reader === undefined) throw new PeerGone('not connected', 0);
    for (;;) {
      const header = await reader.read(FRAME_HEADER_BYTES);
      const bytes = header.readUInt32BE(1) - 4;
      if (bytes < 0 || bytes > STARTUP_MESSAGE_BYTES_MAX) {
        throw new UnderstudyError('protocol-violation', `a message of ${bytes} bytes while connecting`);
      }
      const payload = bytes === 0 ? Buffer.alloc(0) : await reader.read(bytes);
      const type = header.readUInt8(0);
      if (type === BACKEND.errorResponse) throw this.#refusal(header, payload);
      if (type !== BACKEND.noticeResponse) return { type, payload };
      this.#noticeBytes += bytes;
      if (this.#noticeBytes > STARTUP_MESSAGE_BYTES_MAX) {
        throw new UnderstudyError('protocol-violation', 'too many notices while connecting');
      }
      this.#notices.push(header, payload);
    }
  }

  #refusal(header: Buffer, payload: Buffer): BackendRefused {
    const { sqlState, message } = parseErrorFields(payload);
    return new BackendRefused(
      'backend-refused',
      `the ${this.endpoint.side} refused the connection: ${message}`,
      { response: Buffer.concat([header, payload]), sqlState },
      { retryable: RETRYABLE_STATES.includes(sqlState), details: { side: this.endpoint.side, sqlState } },
    );
  }

  async awaitEnd(): Promise<void> {
    try {
      await this.#reader?.read(1);
    } catch (error) {
      if (!(error instanceof PeerGone)) throw error;
    }
  }

  /** The socket, free of listeners and paused. */
  async handOver(): Promise<net.Socket> {
    await this.#reader?.detach();
    if (this.#socket === undefined) throw new PeerGone('not connected', 0);
    return this.#socket;
  }

  destroy(): void {
    this.#destroyed = true;
    this.#socket?.destroy();
  }
}

// ---------------------------------------------------------------------------------------------------------------
// Authentication

async function authenticate(line: ServerLine, user: string, credentials: BackendCredentials): Promise<void> {
  const request = await receiveAuthentication(line);
  switch (request.kind) {
    case 'ok':
      return;
    case 'cleartext':
      if (credentials.kind !== 'password') throw noProofFor(line.endpoint, user, 'a cleartext password');
      line.send(encodePassword(credentials.password));
      break;
    case 'md5': {
      const stored = md5Of(user, credentials);
      if (stored === undefined) throw noProofFor(line.endpoint, user, 'an MD5 password');
      line.send(encodePassword(md5Response(stored, request.salt)));
      break;
    }
    case 'sasl':
      await proveByScram(line, user, request.mechanisms, credentials);
      break;
    case 'unspoken':
      throw noProofFor(line.endpoint, user, request.name);
    case 'sasl-continue':
    case 'sasl-final':
      throw new UnderstudyError('protocol-violation', `${request.kind} before any SASL exchange`);
    default:
      return unreachable(request);
  }
  const { kind } = await receiveAuthentication(line);
  if (kind !== 'ok') throw new UnderstudyError('protocol-violation', `${kind} in place of AuthenticationOk`);
}

async function receiveAuthentication(line: ServerLine): Promise<AuthenticationMessage> {
  const { type, payload } = await line.receive();
  if (type !== BACKEND.authentication) {
    throw new UnderstudyError('protocol-violation', `message type ${type} in place of authentication`);
  }
  return parseAuthentication(payload);
}

function md5Of(user: string, credentials: BackendCredentials): string | undefined {
  switch (credentials.kind) {
    case 'md5':
      return credentials.hash;
    case 'password':
      return md5Secret(user, credentials.password);
    case 'scram-keys':
    case 'none':
      return undefined;
    default:
      return unreachable(credentials);
  }
}

async function proveByScram(
  line: ServerLine,
  user: string,
  mechanisms: readonly string[],
  credentials: BackendCredentials,
): Promise<void> {
  if (!mechanisms.includes(SCRAM_MECHANISM)) throw noProofFor(line.endpoint, user, mechanisms.join(' or '));
  if (credentials.kind === 'md5' || credentials.kind === 'none') {
    throw noProofFor(line.endpoint, user, SCRAM_MECHANISM);
  }
  const exchange = new ScramClientExchange(randomBytes(18).toString('base64'));
  line.send(encodeSaslInitialResponse(SCRAM_MECHANISM, exchange.first()));
  const challenge = await receiveAuthentication(line);
  if (challenge.kind !== 'sasl-continue') {
    throw new UnderstudyError('protocol-violation', `${challenge.kind} in place of a SASL challenge`);
  }
  const { salt, iterations } = exchange.readChallenge(challenge.data);
  let keys: ScramKeys;
  if (credentials.kind === 'password') keys = await deriveScramKeys(credentials.password, salt, iterations);
  else if (salt.equals(credentials.salt) && iterations === credentials.iterations) keys = credentials;
  else throw otherVerifier(line.endpoint, user);
  line.send(encodeSaslResponse(exchange.prove(keys)));
  const last = await receiveAuthentication(line);
  if (last.kind !== 'sasl-final' || !exchange.accepts(last.data)) {
    throw refusedBecause(line.endpoint, {
      sqlState: '28000',
      message: `the ${line.endpoint.side} could not prove that it knows the password of role "${user}"`,
    });
  }
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
        parameters.set(name, value);
        break;
      }
      case BACKEND.backendKeyData:
        key = parseBackendKeyData(payload);
        break;
      case BACKEND.readyForQuery:
        return {
          parameters,
          processId: key?.pid ?? 0,
          secretKey: Buffer.from(key?.secret ?? []),
          notices: line.notices,
        };
      default:
        throw new UnderstudyError('protocol-violation', `message type ${type} in place of ReadyForQuery`);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------
// Refusals made here

type Answer = Omit<ErrorResponseFields, 'severity'>;

function refusedBecause(
  endpoint: BackendEndpoint,
  answer: Answer,
  code: ErrorCode = 'backend-refused',
  context: ErrorContext = {},
): BackendRefused {
  const { sqlState } = answer;
  return new BackendRefused(
    code,
    answer.message,
    { response: encodeErrorResponse({ ...answer, severity: 'FATAL' }), sqlState },
    { details: { side: endpoint.side, sqlState }, ...context },
  );
}

function noProofFor(endpoint: BackendEndpoint, user: string, wanted: string): BackendRefused {
  return refusedBecause(endpoint, {
    sqlState: '28000',
    message: `the ${endpoint.side} asks role "${user}" for ${wanted}, which the proxy can’t give in the client’s name`,
    hint: 'Let clients prove themselves to the proxy by cleartext over TLS, or use scram-sha-256 in pg_hba.conf.',
  });
}

function otherVerifier(endpoint: BackendEndpoint, user: string): BackendRefused {
  return refusedBecause(endpoint, {
    sqlState: '28P01',
    message: `password authentication failed for user "${user}"`,
    detail: `The ${endpoint.side} holds another SCRAM verifier for this role, or none.`,
    hint: "Give the role the same verifier on both sides: ALTER ROLE … PASSWORD 'SCRAM-SHA-256$…'.",
  });
}

function unreachableBecause(endpoint: BackendEndpoint, reason: string, sqlState = '08006'): BackendRefused {
  const { side, host, port } = endpoint;
  return refusedBecause(
    endpoint,
    { sqlState, message: `the ${side} database at ${host}:${port} can’t be reached: ${reason}` },
    side === 'source' ? 'source-unreachable' : 'destination-unreachable',
  );
}

/** Trying several addresses of one name fails with an error whose message is empty and whose code is not. */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error.message !== '') return error.message;
  return 'code' in error && typeof error.code === 'string' ? error.code : error.name;
}

function asRefused(endpoint: BackendEndpoint, error: unknown): UnderstudyError {
  if (error instanceof BackendRefused) return error;
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
