/** TLS on both sides of the proxy. */
import net from 'node:net';
import tls from 'node:tls';
import { UnderstudyError } from '../core/errors.js';
import type { TlsMode } from '../core/ports.js';

/**
 * The context with which clients are answered, at least TLS 1.2. `keyPem` and `certPem` are PEM texts, the latter with
 * its chain. Throws `config-invalid` where they don't fit together.
 */
export function clientSecureContext(options: {
  readonly keyPem: string;
  readonly certPem: string;
}): tls.SecureContext {
  try {
    return tls.createSecureContext({
      key: options.keyPem,
      cert: options.certPem,
      minVersion: 'TLSv1.2',
    });
  } catch (error) {
    throw new UnderstudyError('config-invalid', 'the TLS key and certificate for clients can’t be used', {
      cause: error,
      advice: 'Give a PEM private key and the certificate chain that belongs to it.',
    });
  }
}

/** Whether an address, as Node prints it, is this machine itself. */
export function isLoopback(address: string | undefined): boolean {
  if (address === undefined) return false;
  const plain = address.startsWith('::ffff:') ? address.slice(7) : address;
  return plain === '::1' || (net.isIPv4(plain) && plain.startsWith('127.'));
}

/** Runs the server's half of a TLS handshake on a connection that has been answered `S`. Rejects if it fails. */
export function upgradeClient(socket: net.Socket, secureContext: tls.SecureContext): Promise<tls.TLSSocket> {
  const secured = new tls.TLSSocket(socket, { isServer: true, secureContext });
  return established(secured, 'secure', socket);
}

/** Where a server is, for TLS. */
export interface TlsPeer {
  readonly host: string;
  readonly tls: TlsMode;
  readonly tlsCa?: string;
}

/** Contexts hold the parsed certificate authorities, which is too slow to do for each connection. */
const contexts = new WeakMap<TlsPeer, tls.SecureContext>();

function serverContext(peer: TlsPeer): tls.SecureContext {
  const known = contexts.get(peer);
  if (known !== undefined) return known;
  const context = tls.createSecureContext({
    minVersion: 'TLSv1.2',
    ...(peer.tlsCa === undefined ? {} : { ca: peer.tlsCa }),
  });
  contexts.set(peer, context);
  return context;
}

/** Runs the client's half. The certificate is checked, chain and host name, only in `verify-full`, as in libpq. */
export function upgradeServer(socket: net.Socket, peer: TlsPeer): Promise<tls.TLSSocket> {
  const secured = tls.connect({
    socket,
    host: peer.host,
    // Names only: RFC 6066 forbids addresses here, and the host above is what the certificate is checked against.
    servername: net.isIP(peer.host) === 0 ? peer.host : '',
    secureContext: serverContext(peer),
    rejectUnauthorized: peer.tls === 'verify-full',
  });
  return established(secured, 'secureConnect', socket);
}

function established(
  secured: tls.TLSSocket,
  event: 'secure' | 'secureConnect',
  raw: net.Socket,
): Promise<tls.TLSSocket> {
  // Errors may come at any later time, and one without a listener would end the process.
  const ignore = (): void => undefined;
  secured.on('error', ignore);
  raw.on('error', ignore);
  return new Promise((resolve, reject) => {
    let reason = new Error('the connection was closed during the TLS handshake');
    const done = (): void => {
      secured.off(event, onSecure);
      secured.off('error', onError);
      // Node reports a failed server-side handshake through this event alone.
      secured.off('_tlsError', onError);
      secured.off('close', onClose);
      raw.off('close', onClose);
    };
    const onSecure = (): void => {
      done();
      resolve(secured);
    };
    const onError = (error: Error): void => {
      reason = error;
      done();
      secured.destroy();
      raw.destroy();
      reject(reason);
    };
    const onClose = (): void => onError(reason);
    secured.on(event, onSecure);
    secured.on('error', onError);
    secured.on('_tlsError', onError);
    secured.on('close', onClose);
    raw.on('close', onClose);
  });
}
