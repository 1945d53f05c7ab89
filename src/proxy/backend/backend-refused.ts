/** Why a server connection could not be opened, as it is to be told to the client. */
import { UnderstudyError, type ErrorCode, type ErrorContext } from '../../core/errors.js';
import type { Side } from '../../core/ports.js';
import { encodeErrorResponse, type ErrorResponseFields } from '../../wire/postgres/messages.js';

/** What messages say about a server. */
export interface NamedServer {
  readonly side: Side;
  readonly host: string;
  readonly port: number;
}

/** The server refused, or could not be reached; `response` is the ErrorResponse frame the client should get. */
export class BackendRefused extends UnderstudyError {
  /** A whole frame: the server's own where it sent one, else one made here. Always FATAL. */
  readonly response: Buffer;
  readonly sqlState: string;
  /** Whether `response` is in the server's own words. */
  readonly byServer: boolean;

  constructor(
    code: ErrorCode,
    message: string,
    answer: { readonly response: Buffer; readonly sqlState: string; readonly byServer?: boolean },
    context: ErrorContext = {},
  ) {
    super(code, message, context);
    this.response = answer.response;
    this.sqlState = answer.sqlState;
    this.byServer = answer.byServer ?? false;
  }
}

/** A refusal made here, not by the server. */
export function refusedBecause(
  server: NamedServer,
  answer: Omit<ErrorResponseFields, 'severity'>,
  code: ErrorCode = 'backend-refused',
  context: ErrorContext = {},
): BackendRefused {
  const { sqlState } = answer;
  return new BackendRefused(
    code,
    answer.message,
    { response: encodeErrorResponse({ ...answer, severity: 'FATAL' }), sqlState },
    { details: { side: server.side, sqlState }, ...context },
  );
}

export function unreachableBecause(
  server: NamedServer,
  reason: string,
  sqlState = '08006',
  cause?: unknown,
): BackendRefused {
  const { side, host, port } = server;
  return refusedBecause(
    server,
    { sqlState, message: `the ${side} database at ${host}:${port} can’t be reached: ${reason}` },
    side === 'source' ? 'source-unreachable' : 'destination-unreachable',
    { details: { side, sqlState }, ...(cause === undefined ? {} : { cause }) },
  );
}
