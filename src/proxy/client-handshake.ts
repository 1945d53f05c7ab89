/**
 * A client's connection from its first byte to its proven identity.
 *
 * States: startup (untyped first packets) ⇄ tls (a TLS handshake runs) → authenticating → accepted; closed from any
 * of them. accepted and closed are final.
 * Invariants: what a client is told is said once and in its own protocol; nothing is written in state `tls`, where
 * plain bytes would be garbage to the peer; no more is read from the socket than the handshake's own messages.
 * Failure cases: a refusal, a malformed message or the deadline answer FATAL and close; a peer that leaves is let go.
 *
 * AuthenticationOk is sent as soon as the proof holds, before any server is opened: PostgreSQL too refuses a database
 * or a full house only after it, so that an ErrorResponse in place of the ParameterStatus messages is what clients
 * know. From there on it is the session's part to send ParameterStatus, BackendKeyData and ReadyForQuery.
 * https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
 */
import { randomBytes } from 'node:crypto';
import type net from 'node:net';
import { TLSSocket, type SecureContext } from 'node:tls';
import { UnderstudyError, unreachable } from '../core/errors.js';
import type { Log } from '../core/log.js';
import { StateCell } from '../core/state-machine.js';
import {
  encodeErrorResponse,
  FRAME_HEADER_BYTES,
  FRONTEND,
  type ErrorResponseFields,
} from '../wire/postgres/messages.js';
import {
  encodeAuthenticationOk,
  encodeNegotiateProtocolVersion,
  isStartupLength,
  parseFirstPacket,
  type FirstPacket,
} from '../wire/postgres/startup.js';
import {
  authenticateClient,
  ClientRefused,
  type AuthenticationChannel,
  type ClientAuthentication,
} from './client-authentication.js';
import type { BackendCredentials } from './credentials.js';
import { closeWith, PeerGone, SocketReader } from './socket-reader.js';
import { isLoopback, upgradeClient } from './tls.js';
import { sqlStateOf, type VerifierSource } from './verifiers.js';

/** PostgreSQL's PG_MAX_AUTH_TOKEN_LENGTH. */
const AUTH_MESSAGE_BYTES_MAX = 65_535;

export interface ClientHandshakeDeps {
  readonly verifiers: VerifierSource;
  readonly authentication: ClientAuthentication;
  /** Answers SSLRequest with S where present; see `clientSecureContext` in tls.ts. */
  readonly tls?: SecureContext;
  /** For the whole handshake. */
  readonly timeoutMs: number;
  /** Bound on the payload of one authentication message of a client; 65 535 where absent. */
  readonly authMessageBytesMax?: number;
  /** Makes stable salts for unknown users; random per process where absent. Any secret bytes will do. */
  readonly mockSecret?: Buffer;
  /** A CancelRequest came; the client's connection is closed once this settles. */
  readonly onCancel: (processId: number, secretKey: Buffer) => void | Promise<void>;
  readonly log: Log;
}

export interface AcceptedClient {
  /** Plain or TLS; explicitly paused (call `resume()`), with no listener but a no-op for `error`. It may have been
   *  destroyed already: check `destroyed` after attaching listeners. */
  readonly socket: net.Socket;
  readonly user: string;
  readonly database: string;
  /** Startup parameters except user, database and `_pq_.` options. */
  readonly parameters: ReadonlyMap<string, string>;
  readonly credentials: BackendCredentials;
  /** Bytes read past the handshake; to be treated as the first data from the client. Always empty at present: what
   *  follows the handshake is still in the socket. */
  readonly leftover: Buffer;
}

const processMockSecret = randomBytes(32);

/**
 * Takes a fresh connection through startup and authentication.
 * Null: there is nobody to serve (a cancel request, a refusal, a peer that left); all has been answered, logged and
 * closed. Never throws.
 */
export async function acceptClient(
  socket: net.Socket,
  deps: ClientHandshakeDeps,
): Promise<AcceptedClient | null> {
  return await new ClientHandshake(socket, deps).run();
}

type HandshakeState = 'startup' | 'tls' | 'authenticating' | 'accepted' | 'closed';

interface Startup {
  readonly user: string;
  readonly database: string;
  readonly parameters: ReadonlyMap<string, string>;
}

class ClientHandshake implements AuthenticationChannel {
  readonly #deps: ClientHandshakeDeps;
  readonly #peer: string;
  readonly loopback: boolean;
  #socket: net.Socket;
  #reader: SocketReader;
  /** The listener's own choice, put back before the socket is handed on. */
  readonly #halfOpenAfter: boolean;
  #user: string | undefined;
  readonly #state = new StateCell<HandshakeState>(
    'client handshake',
    {
      startup: ['tls', 'authenticating', 'closed'],
      tls: ['startup', 'closed'],
      authenticating: ['accepted', 'closed'],
      accepted: [],
      closed: [],
    },
    'startup',
  );

  constructor(socket: net.Socket, deps: ClientHandshakeDeps) {
    this.#deps = deps;
    this.#socket = socket;
    this.#peer = `${socket.remoteAddress}:${socket.remotePort}`;
    this.loopback = isLoopback(socket.remoteAddress);
    socket.setNoDelay(true);
    socket.setKeepAlive(true);
    this.#halfOpenAfter = socket.allowHalfOpen;
    this.#reader = this.#listenTo(socket);
  }

  /** A peer that has said its last word within a message is still told what was wrong with it. */
  #listenTo(socket: net.Socket): SocketReader {
    socket.allowHalfOpen = true;
    return new SocketReader(socket);
  }

  get encrypted(): boolean {
    return this.#socket instanceof TLSSocket;
  }

  async run(): Promise<AcceptedClient | null> {
    let timer: NodeJS.Timeout | undefined;
    const expired = new Promise<never>((_resolve, reject) => {
      timer = setTimeout(() => {
        if (this.#state.is('accepted', 'closed')) return;
        const late = refused('57014', 'canceling authentication due to timeout');
        reject(late);
      }, this.#deps.timeoutMs);
    });
    try {
      return await Promise.race([this.#serve(), expired]);
    } catch (error) {
      this.#close(error);
      return null;
    } finally {
      clearTimeout(timer);
    }
  }

  async #serve(): Promise<AcceptedClient | null> {
    const startup = await this.#startup();
    if (startup === null) return null;
    this.#user = startup.user;
    this.#state.move('authenticating');
    const credentials = await authenticateClient(this, startup.user, {
      verifiers: this.#deps.verifiers,
      authentication: this.#deps.authentication,
      mockSecret: this.#deps.mockSecret ?? processMockSecret,
      log: this.#deps.log,
    });
    this.send(encodeAuthenticationOk());
    this.#state.move('accepted');
    this.#socket.allowHalfOpen = this.#halfOpenAfter;
    await this.#reader.detach();
    return this.#socket.destroyed
      ? null
      : { socket: this.#socket, ...startup, credentials, leftover: Buffer.alloc(0) };
  }

  // -------------------------------------------------------------------------------------------------------------
  // First packets

  /** Null after a cancel request. */
  async #startup(): Promise<Startup | null> {
    let sslAnswered = false;
    let gssAnswered = false;
    for (;;) {
      const packet = await this.#firstPacket();
      switch (packet.kind) {
        case 'ssl-request':
          if (sslAnswered) throw unsupportedProtocol(1234, 5679);
          sslAnswered = true;
          if (await this.#answerSsl()) gssAnswered = true;
          break;
        case 'gssenc-request':
          if (gssAnswered) throw unsupportedProtocol(1234, 5680);
          gssAnswered = true;
          this.#forbidEarlyBytes('GSSAPI encryption');
          this.send(Buffer.from('N'));
          break;
        case 'cancel-request':
          await this.#cancel(packet.processId, packet.secretKey);
          return null;
        case 'unsupported':
          throw unsupportedProtocol(packet.major, packet.minor);
        case 'startup':
          return this.#readStartup(packet);
        default:
          return unreachable(packet);
      }
    }
  }

  async #firstPacket(): Promise<FirstPacket> {
    const length = (await this.#reader.read(4)).readUInt32BE(0);
    if (!isStartupLength(length)) throw refused('08P01', 'invalid length of startup packet');
    return parseFirstPacket(await this.#rest(length - 4, 4));
  }

  /** True where the connection is encrypted now. */
  async #answerSsl(): Promise<boolean> {
    this.#forbidEarlyBytes('SSL');
    const context = this.#deps.tls;
    if (context === undefined) {
      this.send(Buffer.from('N'));
      return false;
    }
    this.send(Buffer.from('S'));
    this.#state.move('tls');
    this.#reader.release();
    this.#socket.allowHalfOpen = this.#halfOpenAfter;
    this.#socket = await upgradeClient(this.#socket, context);
    this.#state.move('startup');
    this.#reader = this.#listenTo(this.#socket);
    return true;
  }

  /**
   * Bytes sent before our answer was seen can't have been meant for the encrypted connection; taking them for part of
   * it would let somebody in the middle put words into the client's mouth (CVE-2021-23214).
   */
  #forbidEarlyBytes(what: string): void {
    if (this.#reader.bufferedBytes === 0) return;
    throw refused('08P01', `received unencrypted data after ${what} request`);
  }

  async #cancel(processId: number, secretKey: Buffer): Promise<void> {
    try {
      await this.#deps.onCancel(processId, secretKey);
    } catch (error) {
      this.#deps.log.warn({ peer: this.#peer, error: messageOf(error) }, 'a cancel request failed');
    }
    if (this.#state.is('closed')) return;
    this.#state.move('closed');
    this.#reader.release();
    closeWith(this.#socket, undefined);
  }

  #readStartup(packet: FirstPacket & { readonly kind: 'startup' }): Startup {
    if (packet.minor > 0 || packet.protocolOptions.length > 0) {
      this.send(encodeNegotiateProtocolVersion(packet.protocolOptions));
    }
    const parameters = new Map(packet.parameters);
    const user = parameters.get('user') ?? '';
    if (user === '') throw refused('28000', 'no PostgreSQL user name specified in startup packet');
    const named = parameters.get('database') ?? '';
    parameters.delete('user');
    parameters.delete('database');
    return { user, database: named === '' ? user : named, parameters };
  }

  // -------------------------------------------------------------------------------------------------------------
  // AuthenticationChannel

  send(frame: Buffer): void {
    if (this.#state.is('closed')) throw new PeerGone('the handshake is over', 0);
    this.#socket.write(frame);
  }

  async receive(): Promise<Buffer> {
    const header = await this.#reader.read(FRAME_HEADER_BYTES);
    const type = header.readUInt8(0);
    if (type !== FRONTEND.password) {
      throw refused('08P01', `expected password response, got message type ${type}`);
    }
    const bytes = header.readUInt32BE(1) - 4;
    if (bytes < 1 || bytes > (this.#deps.authMessageBytesMax ?? AUTH_MESSAGE_BYTES_MAX)) {
      throw refused('08P01', 'invalid message length');
    }
    return await this.#rest(bytes, FRAME_HEADER_BYTES);
  }

  /** What follows a header of `before` bytes; a peer that leaves now has left within a message. */
  async #rest(bytes: number, before: number): Promise<Buffer> {
    try {
      return await this.#reader.read(bytes);
    } catch (error) {
      throw error instanceof PeerGone ? error.within(before) : error;
    }
  }

  // -------------------------------------------------------------------------------------------------------------
  // The end of it

  #close(error: unknown): void {
    const state = this.#state.current;
    if (state === 'closed') return;
    if (state !== 'accepted') this.#state.move('closed');
    this.#reader.release();
    const fields = { peer: this.#peer, user: this.#user, state, error: messageOf(error) };
    const answer = answerTo(error, state);
    if (answer === null) {
      this.#deps.log.debug(fields, 'a client left during its handshake');
      closeWith(this.#socket, undefined);
      return;
    }
    if (answer.sqlState === 'XX000') this.#deps.log.error(fields, 'a client’s handshake failed');
    else this.#deps.log.info({ ...fields, sqlState: answer.sqlState }, 'a client was refused');
    if (state === 'tls') this.#socket.destroy();
    else closeWith(this.#socket, encodeErrorResponse(answer));
  }
}

function refused(sqlState: string, message: string): ClientRefused {
  return new ClientRefused('protocol-violation', { sqlState, message });
}

function unsupportedProtocol(major: number, minor: number): ClientRefused {
  return refused('0A000', `unsupported frontend protocol ${major}.${minor}: server supports 3.0 to 3.0`);
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** What the client is told; null where nobody is there to be told, or nothing was asked yet. */
function answerTo(error: unknown, state: HandshakeState): ErrorResponseFields | null {
  if (error instanceof ClientRefused) return error.answer;
  const fatal = (sqlState: string, message: string, hint?: string): ErrorResponseFields => ({
    severity: 'FATAL',
    sqlState,
    message,
    ...(hint === undefined ? {} : { hint }),
  });
  if (error instanceof PeerGone) {
    // A probe that connects and leaves, or a client that has no password to give, said nothing wrong.
    if (error.partialBytes === 0) return null;
    return fatal(
      '08P01',
      state === 'startup' ? 'incomplete startup packet' : 'incomplete message from client',
    );
  }
  if (state === 'tls') return fatal('08P01', 'TLS handshake failed');
  if (!(error instanceof UnderstudyError)) return fatal('XX000', 'internal error in the proxy');
  switch (error.code) {
    case 'protocol-violation': {
      const { sqlState } = error.details;
      return fatal(typeof sqlState === 'string' ? sqlState : '08P01', error.message);
    }
    case 'limit-reached':
      return fatal('53300', 'too many clients are authenticating already');
    case 'source-unreachable':
    case 'destination-unreachable': {
      const side = error.code === 'source-unreachable' ? 'source' : 'destination';
      return fatal(unreachableState(error), `the ${side} database can’t be reached to check passwords`);
    }
    case 'internal':
      return fatal('XX000', 'internal error in the proxy');
    default:
      return fatal('57P03', 'the proxy can’t read password verifiers at present', error.advice);
  }
}

/** A server that starts up, shuts down or is full says so itself; anything else is a failed connection. */
function unreachableState(error: UnderstudyError): string {
  const own = sqlStateOf(error);
  return own !== undefined && ['57P01', '57P02', '57P03', '53300'].includes(own) ? own : '08006';
}
