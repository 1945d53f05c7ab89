/**
 * A connection to a PostgreSQL server up to the point where the first protocol message may be sent: TCP or a unix
 * socket, and TLS as the address asks. Shared by control connections and by those opened in clients' names, so that no
 * setting can hold for one kind and not for the other.
 *
 * Modes are libpq's. `allow` and `prefer` name two ways, of which the second is tried where the first is refused; see
 * {@link overEachWay}. A unix socket is never encrypted, whatever the mode says.
 * https://www.postgresql.org/docs/current/libpq-ssl.html
 */
import net from 'node:net';
import tls from 'node:tls';
import { UnderstudyError } from './errors.js';
import type { ServerAddress, Side } from './ports.js';
import { secureContextOf } from './server-certificates.js';

/** How one attempt goes about encryption. tls-if-offered: plain where the server answers that it has none. */
export type Way = 'plain' | 'tls' | 'tls-if-offered';

/** Why there is no connection. no-tls: the server does not offer what the mode demands. */
export type SocketRefusalReason = 'unreachable' | 'no-tls' | 'tls-failed';

/** Code `source-unreachable` or `destination-unreachable`. */
export class SocketRefused extends UnderstudyError {
  readonly why: SocketRefusalReason;
  /** What went wrong, without saying where. */
  readonly reason: string;

  constructor(side: Side, address: ServerAddress, why: SocketRefusalReason, reason: string, cause?: unknown) {
    super(
      side === 'source' ? 'source-unreachable' : 'destination-unreachable',
      `the ${side} database at ${address.host}:${address.port} can’t be reached: ${reason}`,
      cause === undefined ? {} : { cause },
    );
    this.why = why;
    this.reason = reason;
  }
}

/** Whether `host` names a folder that holds unix sockets. */
export function isSocketFolder(host: string): boolean {
  return host.startsWith('/');
}

/** Where PostgreSQL puts its socket in a folder. */
export function socketPath(folder: string, port: number): string {
  return `${folder.replace(/(?<=.)\/+$/, '')}/.s.PGSQL.${port}`;
}

/** The ways that the address's mode allows, in the order to try them. Never empty. */
export function waysOf(address: ServerAddress): readonly [Way, ...Way[]] {
  if (isSocketFolder(address.host)) return ['plain'];
  switch (address.tls) {
    case 'disable':
      return ['plain'];
    case 'allow':
      return ['plain', 'tls'];
    case 'prefer':
      return ['tls-if-offered', 'plain'];
    case 'require':
    case 'verify-ca':
    case 'verify-full':
      return ['tls'];
  }
}

/** invalid_authorization_specification: pg_hba.conf has no line for this way, or one that rejects. */
const REFUSED_FOR_THIS_WAY = '28000';

/**
 * Runs `attempt` over each way the address allows until one succeeds. The next way is tried where TLS failed, or where
 * the server itself refused with 28000, as it does for a way its pg_hba.conf does not provide for; any other failure
 * would only repeat itself. `sqlStateOf` gives the SQLSTATE of a refusal in the server's own words, else undefined.
 * Throws what the last attempt threw, or the first's, where the second never got to speak to the server.
 */
export async function overEachWay<T>(
  address: ServerAddress,
  attempt: (way: Way) => Promise<T>,
  sqlStateOf: (error: unknown) => string | undefined,
): Promise<T> {
  const [first, second] = waysOf(address);
  try {
    return await attempt(first);
  } catch (error) {
    const tlsFailed = error instanceof UnderstudyError && refusalIn(error)?.why === 'tls-failed';
    const again = tlsFailed || sqlStateOf(error) === REFUSED_FOR_THIS_WAY;
    if (second === undefined || !again) throw error;
    try {
      return await attempt(second);
    } catch (secondError) {
      throw sqlStateOf(secondError) === undefined && refusalIn(secondError) !== undefined
        ? error
        : secondError;
    }
  }
}

/** The refusal itself, or the one that an error was made from. */
function refusalIn(error: unknown): SocketRefused | undefined {
  if (error instanceof SocketRefused) return error;
  return error instanceof Error && error.cause instanceof SocketRefused ? error.cause : undefined;
}

/**
 * Connects. The socket is handed over without listeners but a no-op for `error`, not flowing; it is a `TLSSocket` where
 * the connection is encrypted. Throws {@link SocketRefused}; the signal's firing destroys the socket and rejects.
 */
export async function openServerSocket(
  side: Side,
  address: ServerAddress,
  way: Way,
  signal: AbortSignal,
): Promise<net.Socket> {
  const { host, port } = address;
  const refuse = (why: SocketRefusalReason, reason: string, cause?: unknown): SocketRefused =>
    new SocketRefused(side, address, why, reason, cause);
  const socket = isSocketFolder(host)
    ? net.connect({ path: socketPath(host, port) })
    : net.connect({ host, port, noDelay: true, keepAlive: true });
  socket.on('error', ignore);
  const onAbort = (): void => void socket.destroy();
  signal.addEventListener('abort', onAbort, { once: true });
  if (signal.aborted) onAbort();
  try {
    await settled(socket, 'connect').catch((error: unknown) => {
      throw refuse('unreachable', reasonOf(error), error);
    });
    if (way === 'plain') return socket;
    if (address.tlsNegotiation !== 'direct') {
      const answer = await firstAnswer(socket).catch((error: unknown) => {
        throw refuse('unreachable', reasonOf(error), error);
      });
      if (answer === 'N' && way === 'tls-if-offered') return socket;
      if (answer === 'N') throw refuse('no-tls', 'it does not offer TLS');
      // Anything else is no answer to SSLRequest. What an `E` goes on to say could come from anybody on the way and is
      // not passed on (CVE-2024-10977).
      if (answer !== 'S') throw refuse('unreachable', 'it did not answer the request for TLS');
      // Taken for part of the encrypted connection, these would be somebody else's words (CVE-2021-23222).
      if (socket.readableLength > 0)
        throw refuse('unreachable', 'it sent unencrypted data after its answer to the request for TLS');
    }
    return await encrypted(socket, address).catch((error: unknown) => {
      throw refuse('tls-failed', reasonOf(error), error);
    });
  } catch (error) {
    socket.destroy();
    throw error;
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}

/** Length 8 and the code 1234.5679. */
const SSL_REQUEST = Buffer.from('0000000804d2162f', 'hex');

/** Sends SSLRequest; the one byte it is answered with. */
async function firstAnswer(socket: net.Socket): Promise<string> {
  socket.write(SSL_REQUEST);
  for (;;) {
    const byte = socket.read(1) as Buffer | null;
    if (byte !== null) return byte.toString('latin1');
    if (socket.readableEnded) throw new Error('the connection was closed');
    await settled(socket, 'readable');
  }
}

/** PostgreSQL's name in ALPN; a direct TLS connection that does not agree on it is not one to a PostgreSQL server. */
export const ALPN_POSTGRESQL = 'postgresql';

async function encrypted(socket: net.Socket, address: ServerAddress): Promise<tls.TLSSocket> {
  // As in libpq, an authority that is given is used under `require` too.
  const checksChain =
    address.tls === 'verify-full' ||
    address.tls === 'verify-ca' ||
    (address.tls === 'require' && address.tlsCa !== undefined);
  const secured = tls.connect({
    socket,
    host: address.host,
    // Names only: RFC 6066 forbids addresses here, and the host above is what the certificate is checked against.
    servername: net.isIP(address.host) === 0 ? address.host : '',
    ALPNProtocols: [ALPN_POSTGRESQL],
    secureContext: await secureContextOf(address),
    rejectUnauthorized: checksChain,
    ...(address.tls === 'verify-full' ? {} : { checkServerIdentity: () => undefined }),
  });
  secured.on('error', ignore);
  await settled(secured, 'secureConnect', socket);
  if (address.tlsNegotiation === 'direct' && secured.alpnProtocol !== ALPN_POSTGRESQL) {
    secured.destroy();
    throw new Error('it did not agree on the protocol (ALPN) of a direct TLS connection');
  }
  return secured;
}

/** Resolves with the event; rejects where the socket fails, ends or closes first, or the one `below` it does. */
function settled(socket: net.Socket, event: string, below: net.Socket = socket): Promise<void> {
  return new Promise((resolve, reject) => {
    const done = (): void => {
      socket.off(event, onEvent);
      socket.off('error', onError);
      socket.off('end', onEnd);
      socket.off('close', onEnd);
      below.off('close', onEnd);
    };
    const onEvent = (): void => {
      done();
      resolve();
    };
    const onError = (error: Error): void => {
      done();
      socket.destroy();
      reject(error);
    };
    const onEnd = (): void => onError(new Error('the connection was closed'));
    socket.on(event, onEvent);
    socket.on('error', onError);
    socket.on('end', onEnd);
    socket.on('close', onEnd);
    below.on('close', onEnd);
    if (socket.destroyed || below.destroyed) onEnd();
  });
}

function ignore(): void {
  // The close that follows an error is what is acted on.
}

/** Trying several addresses of one name fails with an error whose message is empty and whose code is not. */
export function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error.message !== '') return error.message;
  return 'code' in error && typeof error.code === 'string' ? error.code : error.name;
}
