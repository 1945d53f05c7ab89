/**
 * Server → client: relays everything as it comes, and watches what settles an answer.
 *
 * Two ways of relaying:
 * - as it comes: frames of no interest are passed without a call; the few others are looked at on their way.
 * - whole: every frame is gathered and then relayed or kept back as one. In force while an answer to the proxy's own
 *   question is due (it is swallowed), and while the session is at rest behind the gate, so that a session is never
 *   moved in the middle of a frame.
 *
 * Asynchronous messages (notifications, ParameterStatus) are relayed in either way.
 */
import {
  ASK,
  DROP,
  FrameWalker,
  PASS,
  PEEK,
  actionTable,
  type ActionTable,
  type FrameVisitor,
} from '../../wire/postgres/frame-walker.js';
import {
  BACKEND,
  encodeErrorResponse,
  encodeFrame,
  parseErrorFields,
  parseParameterStatus,
  type ErrorResponseFields,
} from '../../wire/postgres/messages.js';
import { rewriteParameterDescription, rewriteRowDescription } from '../../wire/postgres/oid-fields.js';
import { parseRawRow } from '../../wire/postgres/raw-text.js';
import type { SessionBinaryTypes } from './binary-types.js';
import type { OwnExchanges } from './own-exchanges.js';
import type { ResponseTracker } from './response-tracker.js';
import type { StatementLog } from './statement-log.js';
import type { OidMaps } from './type-oids.js';

/** What of a server's messages matters to one who only watches. */
export const AS_IT_COMES = actionTable(
  PASS,
  new Map<number, number>([
    [BACKEND.readyForQuery, PEEK],
    [BACKEND.commandComplete, PEEK],
    [BACKEND.errorResponse, ASK],
    [BACKEND.parameterStatus, PEEK],
    [BACKEND.parseComplete, ASK],
    [BACKEND.bindComplete, ASK],
    [BACKEND.closeComplete, ASK],
    [BACKEND.rowDescription, ASK],
    [BACKEND.noData, ASK],
    [BACKEND.emptyQueryResponse, ASK],
    [BACKEND.portalSuspended, ASK],
    [BACKEND.copyInResponse, ASK],
    [BACKEND.copyOutResponse, ASK],
    [BACKEND.copyBothResponse, ASK],
  ]),
);
/** Where descriptions of parameters are looked at too. */
export const WITH_PARAMETERS = actionTable(
  PASS,
  new Map([...AS_IT_COMES.entries(), [BACKEND.parameterDescription, ASK]]),
);
/** The visitor's own mark on frames that are relayed whole, by which they are known at their end. */
const GATHERED = 64;
const WHOLE = actionTable(PEEK | DROP | GATHERED);

/** The client's own statement failed because the proxy cancelled it: it is told so. */
export const ROLLED_BACK = {
  sqlState: '40001',
  message: 'the transaction was rolled back because the database is being switched over',
  hint: 'Run the transaction again.',
} as const;

const QUERY_CANCELED = '57014';

/** The client's own statement ran past the proxy's limit. */
export const QUERY_TIMED_OUT = {
  sqlState: QUERY_CANCELED,
  message: 'canceling statement due to query timeout',
  hint: 'The proxy’s limits.queryTimeoutMs bounds how long a statement may run.',
} as const;

export interface ServerStreamDeps {
  readonly tracker: ResponseTracker;
  readonly log: StatementLog;
  readonly own: OwnExchanges;
  readonly frameBytesMax: number;
  /** Bounds one row of an answer to the proxy's own question. */
  readonly replyBytesMax: number;
  /** What the server's OIDs are to the client; null where they are the same. */
  readonly oids: OidMaps | null;
  /** To be told which types come; null: nobody asks. */
  readonly types: SessionBinaryTypes | null;
  forward(bytes: Buffer): void;
  onParameter(name: string, value: string): void;
  /** SQLSTATE of an error met by the client. */
  onError(sqlState: string): void;
}

export class ServerStream implements FrameVisitor {
  readonly #deps: ServerStreamDeps;
  readonly walker: FrameWalker;
  readonly #asItComes: ActionTable;
  #wholeWanted = false;
  /** An own answer is among those due. */
  #ownDue = false;
  /** The server ended the connection with this ErrorResponse, and the client has seen it. */
  fatal: Buffer | null = null;
  /** What the client is told where the proxy has cancelled its statement, in place of the server's own words. */
  cancelled: ErrorResponseFields | null = null;
  /** What the client is told in place of the next error, which the proxy brought about to refuse a statement. */
  refusing: ErrorResponseFields | null = null;
  /** A ReadyForQuery came since this was last set to false. */
  sawReady = false;

  constructor(deps: ServerStreamDeps) {
    this.#deps = deps;
    this.#asItComes = deps.oids === null && deps.types === null ? AS_IT_COMES : WITH_PARAMETERS;
    this.walker = new FrameWalker(
      this,
      { frameBytesMax: deps.frameBytesMax, peekBytesMax: deps.replyBytesMax },
      this.#asItComes,
    );
  }

  /** Relay only whole frames. In force from the next frame on. */
  set whole(wanted: boolean) {
    this.#wholeWanted = wanted;
    this.#choose();
  }

  /** Call after an own message was sent. */
  ownSent(): void {
    this.#ownDue = true;
    this.#choose();
  }

  #choose(): void {
    if (this.#ownDue && this.#deps.own.pending === 0) this.#ownDue = false;
    const whole = this.#wholeWanted || (this.#ownDue && this.#deps.tracker.ownAtHead);
    this.walker.actions = whole ? WHOLE : this.#asItComes;
  }

  /** Something may have to be said in place of an error. */
  get #hasInstead(): boolean {
    return this.cancelled !== null || this.refusing !== null;
  }

  begin(type: number, payloadBytes: number): number {
    const { tracker, log } = this.#deps;
    switch (type) {
      case BACKEND.errorResponse:
        // One that is too long to be kept passes as it comes, whatever is to be said instead.
        return this.#hasInstead && payloadBytes <= this.#deps.replyBytesMax ? PEEK | DROP : PEEK;
      case BACKEND.copyInResponse:
        tracker.gotCopyIn();
        return PASS;
      case BACKEND.copyOutResponse:
        tracker.gotCopyOut();
        return PASS;
      case BACKEND.copyBothResponse:
        tracker.gotCopyBoth();
        return PASS;
      case BACKEND.parameterDescription:
        return this.#rewriting(payloadBytes);
      case BACKEND.emptyQueryResponse:
      case BACKEND.portalSuspended:
        log.completed(0, this.walker.position);
        break;
      default:
    }
    tracker.gotResponse();
    if (this.#ownDue) this.#choose();
    return type === BACKEND.rowDescription ? this.#rewriting(payloadBytes) : PASS;
  }

  /** A description is looked at, or rewritten: one that came whole where it stands; one that is cut must be gathered first. */
  #rewriting(payloadBytes: number): number {
    const { oids, types } = this.#deps;
    if (oids === null) return types?.wanted === true && this.walker.frameWhole ? PEEK : PASS;
    if (this.walker.frameWhole) return PEEK;
    return payloadBytes <= this.#deps.replyBytesMax ? PEEK | DROP : PASS;
  }

  #rewrite(type: number, bytes: Buffer, start: number, end: number): void {
    const { oids, types } = this.#deps;
    if (oids === null) {
      if (type === BACKEND.rowDescription) types?.rows(bytes, start, end);
      else types?.parameters(bytes, start, end);
      return;
    }
    if (type === BACKEND.rowDescription) rewriteRowDescription(bytes, start, end, oids.types, oids.relations);
    else rewriteParameterDescription(bytes, start, end, oids.types);
    if ((this.walker.frameAction & DROP) !== 0)
      this.#deps.forward(encodeFrame(type, bytes.subarray(start, end)));
  }

  peek(type: number, bytes: Buffer, start: number, end: number, payloadBytes: number): void {
    if ((this.walker.frameAction & GATHERED) !== 0) {
      this.#wholeFrame(type, bytes.subarray(start, end), payloadBytes);
      return;
    }
    const { tracker, log } = this.#deps;
    switch (type) {
      case BACKEND.readyForQuery:
        this.#ready(bytes[start] ?? 0);
        return;
      case BACKEND.commandComplete:
        tracker.gotStatementEnd();
        log.completed(rowsOfTag(bytes, start, end), this.walker.position);
        tracker.gotResponse();
        if (this.#ownDue) this.#choose();
        return;
      case BACKEND.errorResponse:
        this.#error(Buffer.from(bytes.subarray(start, end)), payloadBytes);
        return;
      case BACKEND.parameterStatus:
        this.#parameter(bytes.subarray(start, end));
        return;
      case BACKEND.rowDescription:
      case BACKEND.parameterDescription:
        this.#rewrite(type, bytes, start, end);
        return;
      default:
    }
  }

  forward(bytes: Buffer): void {
    this.#deps.forward(bytes);
  }

  #ready(status: number): void {
    const { tracker, log } = this.#deps;
    const segment = tracker.answered;
    tracker.gotReady(status);
    log.ready(segment, status, this.walker.position);
    this.sawReady = true;
    if (this.#ownDue) this.#choose();
  }

  #error(payload: Buffer, payloadBytes: number): void {
    const { tracker, log } = this.#deps;
    const error = parseErrorFields(payload, payload.length < payloadBytes);
    const frame = encodeFrame(BACKEND.errorResponse, payload);
    const kept = (this.walker.frameAction & DROP) !== 0;
    if (isFatal(error.severity)) {
      this.fatal = frame;
      if (kept) this.#deps.forward(frame);
      return;
    }
    const { refusing } = this;
    if (refusing !== null) {
      this.refusing = null;
      log.failed(tracker.answered, this.walker.position, refusing.sqlState);
      tracker.gotError();
      if (this.#ownDue) this.#choose();
      if (kept) this.#deps.forward(encodeErrorResponse(refusing));
      return;
    }
    this.#deps.onError(error.sqlState);
    log.failed(tracker.answered, this.walker.position, error.sqlState);
    tracker.gotError();
    if (this.#ownDue) this.#choose();
    if (!kept || this.cancelled === null) return;
    this.#deps.forward(error.sqlState === QUERY_CANCELED ? encodeErrorResponse(this.cancelled) : frame);
  }

  #parameter(payload: Buffer): void {
    const { name, value } = parseParameterStatus(payload);
    this.#deps.onParameter(name, value);
  }

  #wholeFrame(type: number, payload: Buffer, payloadBytes: number): void {
    const { tracker, own } = this.#deps;
    switch (type) {
      case BACKEND.notificationResponse:
        this.#deps.forward(encodeFrame(type, payload));
        return;
      case BACKEND.parameterStatus:
        this.#parameter(payload);
        this.#deps.forward(encodeFrame(type, payload));
        return;
      case BACKEND.errorResponse: {
        const error = parseErrorFields(payload, payload.length < payloadBytes);
        // At rest it is not relayed: the session may be about to leave this connection unharmed.
        if (isFatal(error.severity)) this.fatal = encodeFrame(type, payload);
        else if (tracker.ownAtHead) own.failed(error.sqlState);
        return;
      }
      case BACKEND.dataRow:
        if (!tracker.ownAtHead) return;
        if (payload.length < payloadBytes) own.failed('54000');
        else own.row(parseRawRow(payload));
        return;
      case BACKEND.readyForQuery:
        if (tracker.ownAtHead) {
          tracker.gotReady(payload[0] ?? 0);
          this.sawReady = true;
          own.ready();
          this.#choose();
        }
        return;
      case BACKEND.noticeResponse:
        if (!tracker.ownAtHead) this.#deps.forward(encodeFrame(type, payload));
        return;
      default:
    }
  }
}

function isFatal(severity: string): boolean {
  return severity === 'FATAL' || severity === 'PANIC';
}

/** The number at the end of a tag such as `INSERT 0 5` or `SELECT 3`; 0 where there is none. */
export function rowsOfTag(bytes: Buffer, start: number, end: number): number {
  let at = end - 1;
  if (at >= start && bytes[at] === 0) at -= 1;
  let rows = 0;
  let scale = 1;
  for (; at >= start; at--) {
    const digit = (bytes[at] as number) - 0x30;
    if (digit < 0 || digit > 9) break;
    rows += digit * scale;
    scale *= 10;
  }
  return rows;
}
