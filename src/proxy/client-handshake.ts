import type net from 'node:net';
import type { SecureContext } from 'node:tls';
import { UnderstudyError } from '../core/errors.js';
import type { Log } from '../core/log.js';
import type { BackendCredentials } from './credentials.js';
import type { VerifierSource } from './verifiers.js';

/**
 * What a client must show.
 * verifier: SCRAM-SHA-256 or MD5, whichever the role's stored secret is. cleartext: the password itself, only over
 * TLS or loopback, for servers that want it. trust: nothing, only from loopback; any other peer meets `verifier`.
 */
export type ClientAuthentication = 'verifier' | 'cleartext' | 'trust';

export interface ClientHandshakeDeps {
  readonly verifiers: VerifierSource;
  readonly authentication: ClientAuthentication;
  /** Answers SSLRequest with S where present; see `clientSecureContext` in tls.ts. */
  readonly tls?: SecureContext;
  /** For the whole handshake. */
  readonly timeoutMs: number;
  /** Bound on one authentication message of a client; 65 535 where absent. */
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
  /** Bytes read past the handshake; to be treated as the first data from the client. */
  readonly leftover: Buffer;
}

/** Takes a fresh connection through startup and authentication. Null: nobody to serve; all has been answered. */
export function acceptClient(
  _socket: net.Socket,
  _deps: ClientHandshakeDeps,
): Promise<AcceptedClient | null> {
  return Promise.reject(new UnderstudyError('internal', 'not built yet'));
}
