import type net from 'node:net';
import { UnderstudyError, type ErrorCode, type ErrorContext } from '../core/errors.js';
import type { Side, TlsMode } from '../core/ports.js';
import type { BackendCredentials } from './credentials.js';

/** Where to open a connection in a client's name. */
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
  /** Plain or TLS; explicitly paused (call `resume()`), with no listener but a no-op for `error`. */
  readonly socket: net.Socket;
  readonly endpoint: BackendEndpoint;
  /** ParameterStatus values seen while connecting. */
  readonly parameters: Map<string, string>;
  readonly processId: number;
  /** As BackendKeyData carried it. */
  readonly secretKey: Buffer;
  /** Bytes read past ReadyForQuery; to be treated as the first data from the server. */
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

/**
 * Connects, authenticates, and waits for ReadyForQuery.
 * Throws {@link BackendRefused}; `cancelled` where the signal fired.
 */
export function openBackend(
  endpoint: BackendEndpoint,
  _startup: BackendStartup,
  _credentials: BackendCredentials,
  _options: BackendOptions,
): Promise<Backend> {
  return Promise.reject(new UnderstudyError('internal', `not built yet: ${endpoint.side}`));
}

/** Asks the server to cancel what `processId` runs. Resolves once the server has closed the cancel connection. */
export function sendCancel(
  endpoint: BackendEndpoint,
  _processId: number,
  _secretKey: Buffer,
  _timeoutMs: number,
): Promise<void> {
  return Promise.reject(new UnderstudyError('internal', `not built yet: ${endpoint.side}`));
}
