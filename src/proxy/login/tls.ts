/** TLS towards clients. Towards servers it is in core/server-socket.ts. */
import { constants, X509Certificate } from 'node:crypto';
import net from 'node:net';
import tls from 'node:tls';
import { endpointBinding } from '../../core/certificate-hash.js';
import { UnderstudyError } from '../../core/errors.js';
import { ALPN_POSTGRESQL } from '../../core/server-socket.js';

/**
 * What is asked of clients that come over TCP; a unix socket is never encrypted. allow: TLS for those who want it.
 * require: for all. verify-ca: and a certificate signed by the clients' authority. verify-full: and its common name is
 * the user's name.
 */
export type ClientTlsMode = 'allow' | 'require' | 'verify-ca' | 'verify-full';

export interface ClientTls {
  readonly context: tls.SecureContext;
  readonly mode: ClientTlsMode;
  /** Clients are asked for a certificate; one that is shown must be valid, whatever the mode. */
  readonly asksCertificate: boolean;
  /** What SCRAM-SHA-256-PLUS binds to; null where the certificate's signature defines nothing. */
  readonly endpointBinding: Buffer | null;
}

export interface ClientTlsOptions {
  readonly keyPem: string;
  /** With its chain, the server's own first. */
  readonly certPem: string;
  /** PEM of the authorities that sign clients' certificates. */
  readonly clientCaPem?: string;
  readonly mode?: ClientTlsMode;
  readonly minVersion?: 'TLSv1.2' | 'TLSv1.3';
}

/**
 * Makes ready what clients are answered with. Throws `config-invalid` where key and certificate don't fit together, or
 * the mode needs an authority that is not given.
 */
export function clientTls(options: ClientTlsOptions): ClientTls {
  const { keyPem, certPem, clientCaPem, mode = 'allow', minVersion = 'TLSv1.2' } = options;
  if (clientCaPem === undefined && (mode === 'verify-ca' || mode === 'verify-full')) {
    throw new UnderstudyError('config-invalid', `TLS mode ${mode} for clients needs their authority`, {
      advice: 'Name its PEM file in listen.tls.clientCa.',
    });
  }
  try {
    const context = tls.createSecureContext({
      key: keyPem,
      cert: certPem,
      minVersion,
      // As PostgreSQL: no session is resumed and none negotiated anew, so that every connection's certificates have
      // been checked on that connection. The name is what a session a client offers all the same is told apart by.
      secureOptions: constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION,
      sessionIdContext: 'understudy',
      ...(clientCaPem === undefined ? {} : { ca: clientCaPem }),
    });
    return {
      context,
      mode,
      asksCertificate: clientCaPem !== undefined,
      endpointBinding: endpointBinding(new X509Certificate(certPem).raw),
    };
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

/** Runs the server's half of a TLS handshake, on bytes already in the socket's buffer too. Rejects if it fails. */
export function upgradeClient(
  socket: net.Socket,
  { context, asksCertificate }: ClientTls,
): Promise<tls.TLSSocket> {
  const secured = new tls.TLSSocket(socket, {
    isServer: true,
    secureContext: context,
    requestCert: asksCertificate,
    // Judged by `certificateOf`, so that the client can be told.
    rejectUnauthorized: false,
    ALPNProtocols: [ALPN_POSTGRESQL],
  });
  return established(secured, socket);
}

/** A client's certificate: none was shown, it is not valid, or it is, and this is its subject's common name. */
export type ShownCertificate =
  { readonly kind: 'none' | 'invalid' } | { readonly kind: 'valid'; readonly commonName: string | null };

/** Whether the client's certificate is signed by its authority and in force, is judged by OpenSSL. */
export function certificateOf(socket: net.Socket): ShownCertificate {
  if (!(socket instanceof tls.TLSSocket)) return { kind: 'none' };
  // Typed as always there, yet absent where no certificate was shown.
  const shown = socket.getPeerCertificate() as Partial<tls.PeerCertificate>;
  if (shown.raw === undefined) return { kind: 'none' };
  // Node tells the verdict to its own server class alone. Without this method no certificate is believed.
  const handle = (socket as { _handle?: { verifyError?: () => Error | null | undefined } | null })._handle;
  if (typeof handle?.verifyError !== 'function' || (handle.verifyError() ?? null) !== null) {
    return { kind: 'invalid' };
  }
  // An array where the subject has several.
  const commonName: unknown = shown.subject?.CN;
  return { kind: 'valid', commonName: typeof commonName === 'string' ? commonName : null };
}

function established(secured: tls.TLSSocket, raw: net.Socket): Promise<tls.TLSSocket> {
  // Errors may come at any later time, and one without a listener would end the process.
  const ignore = (): void => undefined;
  secured.on('error', ignore);
  raw.on('error', ignore);
  return new Promise((resolve, reject) => {
    let reason = new Error('the connection was closed during the TLS handshake');
    const done = (): void => {
      secured.off('secure', onSecure);
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
    secured.on('secure', onSecure);
    secured.on('error', onError);
    secured.on('_tlsError', onError);
    secured.on('close', onClose);
    raw.on('close', onClose);
  });
}
