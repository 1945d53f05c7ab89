/**
 * The one error type of the product.
 *
 * Every error that leaves a module is an {@link UnderstudyError} with a stable code from {@link ERROR_CODES}.
 * Code matches on `code`, never on message text. `docs/errors.md` lists every code with what to do about it, and
 * a test holds the two identical.
 */

/** code → [retryable, one line for a person: what it means]. Keep sorted by area; `docs/errors.md` mirrors it. */
export const ERROR_CODES = {
  'config-invalid': [false, 'The configuration file, environment or flags are not valid.'],
  'admin-unreachable': [true, 'The running process did not answer on its admin port.'],
  'admin-unauthorized': [false, 'The admin port wants a token, and the one given is missing or wrong.'],
  'request-invalid': [false, 'A request to the admin port was malformed.'],
  busy: [true, 'Another operation on the same subset is running.'],
  cancelled: [false, 'The operation was cancelled before its point of no return.'],
  internal: [false, 'An invariant did not hold. This is a bug in Understudy.'],
  'port-in-use': [false, 'The listening port is taken by another process.'],
  'source-unreachable': [true, 'The source database can’t be reached or refuses the control connection.'],
  'destination-unreachable': [
    true,
    'The destination database can’t be reached or refuses the control connection.',
  ],
  'source-query-failed': [false, 'A statement of Understudy’s own failed on the source.'],
  'destination-query-failed': [false, 'A statement of Understudy’s own failed on the destination.'],
  'protocol-violation': [false, 'A peer sent bytes that are not the protocol it claimed to speak.'],
  'frame-too-large': [false, 'A message declares a length outside the configured bounds.'],
  'auth-failed': [false, 'A client’s credentials were refused.'],
  'backend-refused': [false, 'The database server refused a client’s connection.'],
  'route-unknown': [
    true,
    'A fence stands and the journal can’t be read: which side may be written is not known.',
  ],
  'preflight-blocked': [false, 'Preflight found something that forbids the operation.'],
  'session-pinned': [false, 'A client session holds state that can’t be moved to the other side.'],
  'drain-timeout': [true, 'Statements or transactions were still open when the drain deadline passed.'],
  'warm-failed': [true, 'A connection on the new side could not be opened or prepared for a session.'],
  'fence-timeout': [true, 'The fence could not take its locks within the deadline.'],
  'worker-unresponsive': [true, 'A process that serves clients did not answer in time.'],
  'mark-timeout': [true, 'The shadow did not reach the mark in time.'],
  'verify-mismatch': [false, 'Source and destination hold different rows.'],
  'catalog-changed': [false, 'The schema changed since the shadow was built.'],
  'journal-conflict': [false, 'The journal holds another state than expected: another process acted on it.'],
  'in-doubt': [true, 'COMMIT was sent to the journal and its answer lost; only the journal can tell.'],
  'not-cut-over': [false, 'There is no completed cutover to act on.'],
  'already-cut-over': [false, 'The subset is already on the destination.'],
  'other-proxy-alive': [false, 'Another live Understudy proxy is registered, and no fleet is configured.'],
  'shadow-not-ready': [true, 'The shadow is not following yet, or its lag is unknown or too large.'],
  'shadow-failed': [false, 'The shadow stopped on an error that retrying can’t mend.'],
  'schema-unsupported': [false, 'The source holds an object that can’t be carried to the destination.'],
  'format-refused': [false, 'The format that `shadow.format` asks for can’t be had, or not be turned back.'],
  'schema-build-failed': [false, 'A statement that rebuilds the schema failed on the destination.'],
  'schema-paused': [
    false,
    'The source’s schema changed in a way that is not carried over: the shadow waits.',
  ],
  'stream-broken': [true, 'The replication stream was cut.'],
  'log-budget-spent': [
    false,
    'A slot kept more log than its budget, so the shadow was dropped before the disk filled.',
  ],
  'repair-failed': [true, 'Rows that differ could not be mended.'],
  'conflict-undecided': [false, 'The user’s module did not say which of two rows wins.'],
  'slot-lost': [false, 'The replication slot is gone or its log was removed.'],
  'apply-failed': [false, 'A change could not be applied to the shadow.'],
  'copy-failed': [true, 'Copying a table failed.'],
  'limit-reached': [true, 'A configured bound was reached.'],
  'series-invalid': [false, 'A series to be forecast holds something that is not a count per bucket.'],
  'log-unreadable': [false, 'A log file can’t be opened, is damaged, or has a format that is not known.'],
  'recording-unreadable': [false, 'A recording is damaged, or was written by another version.'],
  'replay-refused': [false, 'A replay would write to a database that it must not write to.'],
} as const satisfies Record<string, readonly [boolean, string]>;

export type ErrorCode = keyof typeof ERROR_CODES;

export interface ErrorContext {
  readonly cause?: unknown;
  /** What the person should do next, as one imperative sentence. */
  readonly advice?: string;
  /** Machine-readable details. Never SQL parameters, passwords or row values. */
  readonly details?: Readonly<Record<string, unknown>>;
  /** Overrides the code's default, where the cause knows better. */
  readonly retryable?: boolean;
}

export class UnderstudyError extends Error {
  override readonly name = 'UnderstudyError';
  readonly code: ErrorCode;
  readonly retryable: boolean;
  readonly advice: string | undefined;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(code: ErrorCode, message: string, context: ErrorContext = {}) {
    super(message, context.cause === undefined ? undefined : { cause: context.cause });
    this.code = code;
    this.retryable = context.retryable ?? ERROR_CODES[code][0];
    this.advice = context.advice;
    this.details = context.details ?? {};
  }

  /** The form sent over the admin port, a worker's port and `--json`. */
  toJSON(): SerializedError {
    return {
      code: this.code,
      message: this.message,
      retryable: this.retryable,
      ...(this.advice === undefined ? {} : { advice: this.advice }),
      details: this.details,
    };
  }

  static fromJSON(error: SerializedError): UnderstudyError {
    return new UnderstudyError(error.code, error.message, {
      retryable: error.retryable,
      details: error.details,
      ...(error.advice === undefined ? {} : { advice: error.advice }),
    });
  }
}

export interface SerializedError {
  readonly code: ErrorCode;
  readonly message: string;
  readonly retryable: boolean;
  readonly advice?: string;
  readonly details: Readonly<Record<string, unknown>>;
}

/** Wraps anything thrown as an UnderstudyError; one that already is passes through unchanged. */
export function asUnderstudyError(thrown: unknown, code: ErrorCode, what: string): UnderstudyError {
  if (thrown instanceof UnderstudyError) return thrown;
  const reason = thrown instanceof Error ? thrown.message : String(thrown);
  return new UnderstudyError(code, `${what}: ${reason}`, { cause: thrown });
}

/** Throws `internal` where an invariant does not hold. */
export function invariant(condition: unknown, message: string): asserts condition {
  if (!condition) throw new UnderstudyError('internal', `invariant violated: ${message}`);
}

/** For the `default` of a switch over a union: compile error where a case is missing, `internal` at run time. */
export function unreachable(value: never): never {
  throw new UnderstudyError('internal', `unexpected value: ${JSON.stringify(value)}`);
}
