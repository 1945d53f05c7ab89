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
import { TLSSocket } from 'node:tls';
import { UnderstudyError, unreachable } from '../../core/errors.js';
import type { Log } from '../../core/log.js';
import { ALPN_POSTGRESQL } from '../../core/server-socket.js';
import { StateCell } from '../../core/state-machine.js';
import {
  encodeErrorResponse,
  FRAME_HEADER_BYTES,
  FRONTEND,
  type ErrorResponseFields,
} from '../../wire/postgres/messages.js';
import {
  encodeAuthenticationOk,
  encodeNegotiateProtocolVersion,
  isStartupLength,
  parseFirstPacket,
  type FirstPacket,
} from '../../wire/postgres/startup.js';
import {
  authenticateClient,
  ClientRefused,
  requireCertificate,
  type AuthenticationChannel,
  type ClientAuthentication,
} from './client-authentication.js';
import type { BackendCredentials } from './credentials.js';
import { isPhysicalReplication } from '../session/session-phases.js';
import { NOT_NOW } from '../refusals.js';
import { closeWith, PeerGone, SocketReader } from '../socket-reader.js';
import { certificateOf, isLoopback, upgradeClient, type ClientTls, type ShownCertificate } from './tls.js';
import { sqlStateOf, type VerifierSource } from './verifiers.js';

/** PostgreSQL's PG_MAX_AUTH_TOKEN_LENGTH. */
const AUTH_MESSAGE_BYTES_MAX = 65_535;
const STARTUP_GRACE_MS = 1_000;
/** ContentType of the record a TLS connection begins with; no startup packet is long enough to begin with it. */
const TLS_HANDSHAKE_RECORD = 0x16;
const NOTHING = Buffer.alloc(0);

export interface ClientHandshakeDeps {
  readonly verifiers: VerifierSource;
  readonly authentication: ClientAuthentication;
  /** Answers SSLRequest with S where present, and takes connections that begin with TLS. */
  readonly tls?: ClientTls;
  /**
   * Which minor version of protocol 3 the server speaks that the client will be connected to; asked for clients that
   * want more than 3.0. Absent: 0. Never rejects.
   */
  readonly serverProtocolMinor?: (user: string, database: string) => Promise<number>;
  /** What a physical replication connection counts as asking for, whatever it names; what it names where absent. */
  readonly physicalDatabase?: string;
  /** For the whole handshake. */
  readonly timeoutMs: number;
  /** Aborted when the proxy stops: who is in the middle of its handshake is told to come later; as a server tells it, not
   *  before the startup packet, in front of which clients understand other answers or none. */
  readonly stopping?: AbortSignal;
  /** For who has not sent it by then; 1,000 where absent. */
  readonly startupGraceMs?: number;
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
  /** Of protocol 3, as agreed with the client. */
  readonly protocolMinor: number;
  /** What the client is still to be told before anything else: AuthenticationOk, where a server has the last word. */
  readonly greeting: Buffer;
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
  readonly protocolMinor: number;
  readonly user: string;
  readonly database: string;
  readonly parameters: ReadonlyMap<string, string>;
}

class ClientHandshake implements AuthenticationChannel {
  readonly #deps: ClientHandshakeDeps;
  readonly #peer: string;
  /** Came over a unix socket. */
  readonly #local: boolean;
  readonly loopback: boolean;
  #socket: net.Socket;
  #reader: SocketReader;
  /** The listener's own choice, put back before the socket is handed on. */
  readonly #halfOpenAfter: boolean;
  #user: string | undefined;
  /** The first byte has been seen. */
  #begun = false;
  /** Something written is kept, to go out with what follows. */
  #corked = false;
  /** Encrypted from the first byte on. */
  #direct = false;
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
    const { remoteAddress } = socket;
    // A unix socket has no addresses.
    this.#local = remoteAddress === undefined && socket.localPort === undefined;
    this.#peer = this.#local ? 'local' : `${remoteAddress}:${socket.remotePort}`;
    this.loopback = this.#local || isLoopback(remoteAddress);
    socket.setNoDelay(true);
    socket.setKeepAlive(true);
    this.#halfOpenAfter = socket.allowHalfOpen;
    this.#reader = this.#listenTo(socket);
  }

  /** A peer that has said its last word is still answered. */
  #listenTo(socket: net.Socket): SocketReader {
    socket.allowHalfOpen = true;
    return new SocketReader(socket);
  }

  get encrypted(): boolean {
    return this.#socket instanceof TLSSocket;
  }

  get endpointBinding(): Buffer | null {
    return this.encrypted ? (this.#deps.tls?.endpointBinding ?? null) : null;
  }

  get certificate(): ShownCertificate {
    return certificateOf(this.#socket);
  }

  async run(): Promise<AcceptedClient | null> {
    const { stopping, startupGraceMs = STARTUP_GRACE_MS } = this.#deps;
    let timer: NodeJS.Timeout | undefined;
    let grace: NodeJS.Timeout | undefined;
    let onStop = (): void => undefined;
    const expired = new Promise<never>((_resolve, reject) => {
      timer = setTimeout(() => {
        if (this.#state.is('accepted', 'closed')) return;
        const late = refused('57014', 'canceling authentication due to timeout');
        reject(late);
      }, this.#deps.timeoutMs);
      onStop = () => {
        if (this.#state.is('authenticating')) reject(stopped());
        else if (this.#state.is('startup', 'tls'))
          grace = setTimeout(() => reject(stopped()), startupGraceMs);
      };
      if (stopping?.aborted === true) onStop();
      stopping?.addEventListener('abort', onStop);
    });
    try {
      return await Promise.race([this.#serve(), expired]);
    } catch (error) {
      this.#close(error);
      return null;
    } finally {
      clearTimeout(timer);
      clearTimeout(grace);
      stopping?.removeEventListener('abort', onStop);
    }
  }

  async #serve(): Promise<AcceptedClient | null> {
    const startup = await this.#startup();
    if (startup === null) return null;
    this.#user = startup.user;
    this.#state.move('authenticating');
    this.#requireTls(startup.user);
    const { user, database } = startup;
    const credentials = await authenticateClient(this, user, {
      verifiers: { lookup: (role) => this.#deps.verifiers.lookup(role, database) },
      authentication: this.#deps.authentication,
      mockSecret: this.#deps.mockSecret ?? processMockSecret,
      log: this.#deps.log,
    });
    const greeting =
      credentials.kind === 'given-password' && !credentials.proven ? encodeAuthenticationOk() : NOTHING;
    if (greeting.length === 0) this.send(encodeAuthenticationOk());
    this.#flush();
    this.#state.move('accepted');
    this.#socket.allowHalfOpen = this.#halfOpenAfter;
    await this.#reader.detach();
    return this.#socket.destroyed
      ? null
      : { socket: this.#socket, ...startup, credentials, greeting, leftover: NOTHING };
  }

  /** What the TLS mode demands beyond the proof. */
  #requireTls(user: string): void {
    const mode = this.#deps.tls?.mode ?? 'allow';
    if (mode === 'allow' || this.#local) return;
    if (!this.encrypted) {
      throw new ClientRefused('auth-failed', {
        sqlState: '28000',
        message: 'this proxy takes encrypted connections only',
        hint: 'Connect with sslmode=require.',
      });
    }
    const { certificate } = this;
    if (mode === 'verify-full') requireCertificate(certificate, user);
    if (mode === 'verify-ca' && certificate.kind !== 'valid') requireCertificate({ kind: 'none' }, user);
  }

  /** Null after a cancel request. */
  async #startup(): Promise<Startup | null> {
    let sslAnswered = false;
    let gssAnswered = false;
    for (;;) {
      const packet = await this.#firstPacket();
      if (this.#direct) sslAnswered = gssAnswered = true;
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
          if (this.#deps.stopping?.aborted === true) throw stopped();
          return await this.#readStartup(packet);
        default:
          return unreachable(packet);
      }
    }
  }

  async #firstPacket(): Promise<FirstPacket> {
    const first = await this.#reader.read(1);
    if (first[0] === TLS_HANDSHAKE_RECORD && !this.#begun && this.#deps.tls !== undefined) {
      this.#begun = true;
      await this.#beginTls(first, this.#deps.tls);
      return await this.#firstPacket();
    }
    this.#begun = true;
    const length = Buffer.concat([first, await this.#reader.read(3)]).readUInt32BE(0);
    if (!isStartupLength(length)) throw new NotAStartup();
    return parseFirstPacket(await this.#reader.read(length - 4));
  }

  /** True where the connection is encrypted now. */
  async #answerSsl(): Promise<boolean> {
    this.#forbidEarlyBytes('SSL');
    const context = this.#deps.tls;
    if (context === undefined || this.#local) {
      this.send(Buffer.from('N'));
      return false;
    }
    this.send(Buffer.from('S'));
    await this.#encrypt(context);
    return true;
  }

  /** The client begins with TLS at once (libpq's sslnegotiation=direct); `first` is of its handshake. */
  async #beginTls(first: Buffer, context: ClientTls): Promise<void> {
    if (this.#local) throw new NotAStartup();
    this.#socket.unshift(first);
    await this.#encrypt(context);
    if ((this.#socket as TLSSocket).alpnProtocol !== ALPN_POSTGRESQL) {
      throw refused(
        '08P01',
        'received direct SSL connection request without ALPN protocol negotiation extension',
      );
    }
    this.#direct = true;
  }

  async #encrypt(context: ClientTls): Promise<void> {
    this.#state.move('tls');
    this.#reader.release();
    this.#socket.allowHalfOpen = this.#halfOpenAfter;
    this.#socket = await upgradeClient(this.#socket, context);
    this.#state.move('startup');
    this.#reader = this.#listenTo(this.#socket);
    if (this.certificate.kind === 'invalid') {
      throw new ClientRefused('auth-failed', {
        sqlState: '28000',
        message: 'the client certificate is not valid',
      });
    }
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

  async #readStartup(packet: FirstPacket & { readonly kind: 'startup' }): Promise<Startup> {
    const parameters = new Map(packet.parameters);
    const user = parameters.get('user') ?? '';
    if (user === '') throw refused('28000', 'no PostgreSQL user name specified in startup packet');
    const named = parameters.get('database') ?? '';
    parameters.delete('user');
    parameters.delete('database');
    const physical = isPhysicalReplication(parameters.get('replication'));
    const asked = named === '' ? user : named;
    const database = physical ? (this.#deps.physicalDatabase ?? asked) : asked;
    const protocolMinor = await this.#agree(packet, user, database);
    return { protocolMinor, user, database, parameters };
  }

  /** As the server itself would agree on a version: the lower of both, said where the client asked for more. */
  async #agree(
    packet: FirstPacket & { readonly kind: 'startup' },
    user: string,
    database: string,
  ): Promise<number> {
    const { minor, protocolOptions } = packet;
    const spoken = minor === 0 ? 0 : ((await this.#deps.serverProtocolMinor?.(user, database)) ?? 0);
    const agreed = Math.min(minor, spoken);
    if (minor > agreed || protocolOptions.length > 0) {
      this.send(encodeNegotiateProtocolVersion(agreed, protocolOptions));
    }
    return agreed;
  }

  send(frame: Buffer): void {
    if (this.#state.is('closed')) throw new PeerGone('the handshake is over');
    this.#socket.write(frame);
    this.#flush();
  }

  sendWithNext(frame: Buffer): void {
    if (!this.#corked) this.#socket.cork();
    this.#corked = true;
    this.#socket.write(frame);
  }

  #flush(): void {
    if (!this.#corked) return;
    this.#corked = false;
    this.#socket.uncork();
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
    return await this.#reader.read(bytes);
  }

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

/** What came first can't be a packet of this protocol. */
class NotAStartup extends UnderstudyError {
  constructor() {
    super('protocol-violation', 'invalid length of startup packet');
  }
}

function stopped(): ClientRefused {
  return refused(NOT_NOW.sqlState, NOT_NOW.message);
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
  // As PostgreSQL has it: whoever is gone, or speaks something else, is told nothing.
  if (error instanceof PeerGone || error instanceof NotAStartup) return null;
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
