/**
 * Client → server: looks at each frame's header, notes what the server will owe an answer to, and what the statement
 * may leave behind in the session.
 *
 * While draining (the gate is closing) it lets the session go on to its next boundary only: once a sync point is on
 * its way, nothing new follows it until its ReadyForQuery. COPY data always passes, as the server would wait for it
 * for ever; so does Terminate.
 */
import {
  DROP,
  PASS,
  PEEK,
  PEEK_HEAD,
  STOP,
  FrameWalker,
  type FrameVisitor,
} from '../../wire/postgres/frame-walker.js';
import { FRONTEND, encodeFrame } from '../../wire/postgres/messages.js';
import { rewriteFunctionCall, rewriteParse } from '../../wire/postgres/oid-fields.js';
import {
  CHANGES_STATE,
  LOADS_LIBRARY,
  MAY_UNPIN,
  NAMES_SETTINGS,
  UNKNOWN_SETTING,
  endsPreparedTransaction,
  type StatementText,
} from '../../wire/postgres/statement-text.js';
import { UnderstudyError } from '../../core/errors.js';
import type { SessionBinaryTypes } from './binary-types.js';
import type { ResponseTracker } from './response-tracker.js';
import type { Pin } from './session-state.js';
import type { StatementLog } from './statement-log.js';
import type { OidMaps } from './type-oids.js';

/** What a session's texts may be cut at when they are looked through; far above what the tap keeps. */
export const CLASSIFY_BYTES_MAX = 65_536;
/** Custom settings remembered by name for one session. */
const SETTING_NAMES_MAX = 256;

export interface ClientStreamDeps {
  readonly tracker: ResponseTracker;
  readonly log: StatementLog;
  readonly text: StatementText;
  /** To be told which types and formats are used; null: nobody asks. */
  readonly types: SessionBinaryTypes | null;
  readonly frameBytesMax: number;
  /** A replication connection's, while subsets are on different sides: it may send nothing but replication commands. */
  readonly commandsOnly?: () => boolean;
  /** Bytes for the server. */
  forward(bytes: Buffer): void;
}

/** A frame of this type may not follow what is on its way before that is answered, if nothing but that may be on its way. */
export function mustFollowAnswers(tracker: ResponseTracker, type: number): boolean {
  if (!tracker.awaitingReady) return false;
  switch (type) {
    case FRONTEND.copyData:
    case FRONTEND.copyDone:
    case FRONTEND.copyFail:
    case FRONTEND.terminate:
      return false;
    case FRONTEND.sync:
    case FRONTEND.flush:
      return tracker.copy !== 'in';
    default:
      return true;
  }
}

export class ClientStream implements FrameVisitor {
  readonly #deps: ClientStreamDeps;
  readonly walker: FrameWalker;
  draining = false;
  /** The client said goodbye. */
  terminated = false;
  /** Bytes of whole frames begun so far. */
  bytes = 0;
  /** Grows with each statement that may change what the session holds. */
  changes = 0;
  /** Those of them that only prepared a statement or let go of one, and left every setting as it was. */
  preparing = 0;
  /** Something pinned the session when it was asked last, so that dropping things counts as a change. */
  pinnedWhenAsked = false;
  /** What the client's OIDs are to its present server; null where they are the same. */
  oids: OidMaps | null = null;
  /** Custom settings whose names were seen. */
  readonly settingNames = new Set<string>();
  /** Pins that no question can find, by text; they stay until the session ends. */
  readonly pins: Pin[] = [];
  #unnamed: Buffer = NOTHING;
  #unnamedBytes = 0;
  #unnamedLost = false;

  constructor(deps: ClientStreamDeps) {
    this.#deps = deps;
    this.walker = new FrameWalker(this, {
      frameBytesMax: deps.frameBytesMax,
      peekBytesMax: CLASSIFY_BYTES_MAX,
    });
  }

  /**
   * Payload of the unnamed statement's Parse, where one is alive, as the client sent it; aliases a buffer that the next
   * one overwrites.
   */
  get unnamedParse(): Buffer | null {
    return this.#unnamedBytes === 0 ? null : this.#unnamed.subarray(0, this.#unnamedBytes);
  }

  /** An unnamed statement is alive, was not bound yet, and is too long to be kept: a question would destroy it. */
  get unnamedIrreplaceable(): boolean {
    return this.#unnamedLost;
  }

  /** Takes over what a client did before it became a session. `unnamed`: payload of its unnamed statement's Parse. */
  adopt(before: {
    readonly unnamed: Buffer | null;
    readonly settingNames: Iterable<string>;
    readonly pins: readonly Pin[];
  }): void {
    for (const name of before.settingNames) this.settingNames.add(name);
    this.pins.push(...before.pins);
    if (before.unnamed === null) return;
    this.#unnamed = Buffer.from(before.unnamed);
    this.#unnamedBytes = before.unnamed.length;
  }

  /** A text shows that this frame ends a prepared transaction, which another session may wait for. */
  endsPreparedTransaction(type: number, payload: Buffer): boolean {
    const from = type === FRONTEND.parse ? payload.indexOf(0) + 1 : 0;
    return endsPreparedTransaction(
      payload.toString('latin1', from, endOfName(payload, from, payload.length)),
    );
  }

  begin(type: number, payloadBytes: number): number {
    const { tracker } = this.#deps;
    if (this.draining && this.mustWait(type)) return STOP;
    this.bytes += payloadBytes + 5;
    switch (type) {
      case FRONTEND.query:
        tracker.sentQuery();
        this.#dropUnnamed();
        return this.#deps.commandsOnly?.() === true ? PEEK | DROP : PEEK;
      case FRONTEND.parse:
        tracker.sentExtended();
        return PEEK | this.#gathering(payloadBytes);
      case FRONTEND.bind:
      case FRONTEND.execute:
        tracker.sentExtended();
        return PEEK_HEAD;
      case FRONTEND.close:
        tracker.sentExtended();
        return PEEK;
      case FRONTEND.describe:
        tracker.sentExtended();
        return PASS;
      case FRONTEND.sync:
        tracker.sentSync();
        return PASS;
      case FRONTEND.flush:
        // Malformed: refused like an extended message, and what follows is skipped up to a Sync.
        if (payloadBytes > 0 && tracker.copy !== 'in') tracker.sentExtended();
        return PASS;
      case FRONTEND.functionCall:
        // It may call anything.
        tracker.sentFunctionCall();
        this.changes += 1;
        return this.oids === null ? PASS : PEEK | this.#gathering(payloadBytes);
      case FRONTEND.copyDone:
      case FRONTEND.copyFail:
        tracker.sentCopyEnd();
        return PASS;
      case FRONTEND.terminate:
        this.terminated = true;
        return PASS;
      default:
        return PASS;
    }
  }

  /** What names OIDs and came in pieces must be gathered before it can be rewritten; not beyond a bound. */
  #gathering(payloadBytes: number): number {
    const cut = this.oids !== null && !this.walker.frameWhole;
    return cut && payloadBytes <= CLASSIFY_BYTES_MAX ? DROP : PASS;
  }

  /** As {@link mustFollowAnswers}. */
  mustWait(type: number): boolean {
    return mustFollowAnswers(this.#deps.tracker, type);
  }

  /** A Query of the client's is answered by an error and never sent: it ends the unnamed statement all the same. */
  refusedQuery(): void {
    this.#deps.tracker.sentQuery();
    this.#dropUnnamed();
  }

  /** As `refusedQuery`, of an extended message. */
  refusedExtended(): void {
    this.#deps.tracker.sentExtended();
  }

  peek(type: number, bytes: Buffer, start: number, end: number, payloadBytes: number): void {
    const { log, text, tracker } = this.#deps;
    switch (type) {
      case FRONTEND.query: {
        const textEnd = withoutZero(bytes, start, end);
        if ((this.walker.frameAction & DROP) !== 0) {
          if (!REPLICATION_COMMAND.test(bytes.toString('latin1', start, textEnd)))
            throw new UnderstudyError(
              'protocol-violation',
              'while subsets are on different sides a replication connection may send replication commands only',
            );
          this.#deps.forward(encodeFrame(type, bytes.subarray(start, end)));
        }
        this.#note(text.classify(bytes, start, textEnd, end - start < payloadBytes));
        log.query(bytes, start, textEnd, tracker.sent - 1, this.bytes);
        return;
      }
      case FRONTEND.parse:
        this.#parse(bytes, start, end, payloadBytes);
        if (this.oids !== null) this.#rewrite(type, bytes, start, end, payloadBytes, this.oids);
        return;
      case FRONTEND.functionCall:
        if (this.oids !== null) this.#rewrite(type, bytes, start, end, payloadBytes, this.oids);
        return;
      case FRONTEND.bind: {
        const portalEnd = endOfName(bytes, start, end);
        const statementEnd = endOfName(bytes, portalEnd + 1, end);
        const portal = portalEnd === start ? '' : bytes.toString('latin1', start, portalEnd);
        const statement =
          statementEnd === portalEnd + 1 ? '' : bytes.toString('latin1', portalEnd + 1, statementEnd);
        const rest = Math.min(statementEnd + 1, end);
        this.#note(log.bind(portal, statement, bytes, rest, end));
        this.#deps.types?.bound(bytes, rest, end, end - start === payloadBytes);
        if (statement === '') this.#unnamedLost = false;
        return;
      }
      case FRONTEND.execute: {
        const portalEnd = endOfName(bytes, start, end);
        const portal = portalEnd === start ? '' : bytes.toString('latin1', start, portalEnd);
        log.execute(portal, tracker.sent, this.bytes);
        return;
      }
      case FRONTEND.close: {
        const name = bytes.toString('latin1', start + 1, endOfName(bytes, start + 1, end));
        if (bytes[start] !== STATEMENT) {
          log.closePortal(name);
        } else if (name === '') {
          this.#dropUnnamed();
        } else {
          log.closeStatement(name);
          this.changes += 1;
          this.preparing += 1;
        }
        return;
      }
      default:
    }
  }

  forward(bytes: Buffer): void {
    this.#deps.forward(bytes);
  }

  #rewrite(
    type: number,
    bytes: Buffer,
    start: number,
    end: number,
    payloadBytes: number,
    oids: OidMaps,
  ): void {
    if (end - start < payloadBytes) return;
    if (type === FRONTEND.parse) rewriteParse(bytes, start, end, oids.types);
    else rewriteFunctionCall(bytes, start, end, oids.functions);
    if ((this.walker.frameAction & DROP) !== 0)
      this.#deps.forward(encodeFrame(type, bytes.subarray(start, end)));
  }

  #parse(bytes: Buffer, start: number, end: number, payloadBytes: number): void {
    const { log, text } = this.#deps;
    const nameEnd = endOfName(bytes, start, end);
    const name = nameEnd === start ? '' : bytes.toString('latin1', start, nameEnd);
    const textStart = Math.min(nameEnd + 1, end);
    const textEnd = endOfName(bytes, textStart, end);
    const cut = textEnd === end && end - start < payloadBytes;
    const flags = text.classify(bytes, textStart, textEnd, cut);
    // What a text pins or names counts as soon as it is seen; what it changes, once it is bound.
    this.#note(flags & ~(CHANGES_STATE | MAY_UNPIN));
    log.parse(name, bytes, textStart, textEnd, flags);
    if (end - start === payloadBytes) this.#deps.types?.parameters(bytes, textEnd + 1, end);
    if (name !== '') {
      this.changes += 1;
      this.preparing += 1;
      return;
    }
    if (end - start < payloadBytes) {
      this.#unnamedBytes = 0;
      this.#unnamedLost = true;
      return;
    }
    this.#unnamedLost = false;
    const length = end - start;
    if (this.#unnamed.length < length) this.#unnamed = Buffer.allocUnsafe(Math.max(256, length * 2));
    bytes.copy(this.#unnamed, 0, start, end);
    this.#unnamedBytes = length;
  }

  #dropUnnamed(): void {
    this.#unnamedBytes = 0;
    this.#unnamedLost = false;
  }

  #note(flags: number): void {
    if (flags === 0) return;
    if ((flags & CHANGES_STATE) !== 0) this.changes += 1;
    if ((flags & MAY_UNPIN) !== 0 && this.pinnedWhenAsked) this.changes += 1;
    if ((flags & NAMES_SETTINGS) !== 0) this.#rememberNames();
    if ((flags & UNKNOWN_SETTING) !== 0) {
      this.#pin({ reason: 'unknown-setting', detail: 'a setting whose name the statement does not tell' });
    }
    if ((flags & LOADS_LIBRARY) !== 0) {
      this.#pin({ reason: 'loaded-library', detail: 'a LOAD statement' });
    }
  }

  #rememberNames(): void {
    for (const name of this.#deps.text.settingNames) {
      if (this.settingNames.has(name)) continue;
      if (this.settingNames.size >= SETTING_NAMES_MAX) {
        this.#pin({ reason: 'unknown-setting', detail: `more than ${SETTING_NAMES_MAX} custom settings` });
        return;
      }
      this.settingNames.add(name);
      // Even one that is set for its transaction only reads differently afterwards: empty, no longer unset.
      this.changes += 1;
    }
  }

  #pin(pin: Pin): void {
    if (!this.pins.some((known) => known.reason === pin.reason)) this.pins.push(pin);
  }
}

/** One alone: what has a semicolon in it may be several. */
const REPLICATION_COMMAND =
  /^\s*(?:IDENTIFY_SYSTEM|READ_REPLICATION_SLOT|(?:CREATE|DROP|ALTER)_REPLICATION_SLOT|START_REPLICATION|TIMELINE_HISTORY|BASE_BACKUP|UPLOAD_MANIFEST|SHOW)\b[^;]{0,8192};?\s*$/i;

const NOTHING = Buffer.alloc(0);

/** 'S' in Close: a statement, not a portal. */
const STATEMENT = 0x53;

function endOfName(bytes: Buffer, from: number, end: number): number {
  const zero = bytes.indexOf(0, from);
  return zero === -1 || zero > end ? end : zero;
}

function withoutZero(bytes: Buffer, start: number, end: number): number {
  return end > start && bytes[end - 1] === 0 ? end - 1 : end;
}
