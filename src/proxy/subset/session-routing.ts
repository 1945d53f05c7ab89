/**
 * One session's statements, each to its side, while subsets are on different sides (docs/adr/0008). Made when the router is
 * armed, at rest; gone when it is disarmed.
 *
 * States: resting (what comes is looked at) · reading (a text waits for the parser, or the server is asked what a name
 * stands for) · moving (the session goes to the other side; it may not be held meanwhile) · dropping (a pipeline was
 * refused; the rest of it, up to its Sync, goes nowhere) · ended.
 *
 *   resting ⇄ reading          resting, reading → moving → resting          resting ⇄ dropping          any → ended
 *
 * What is decided on together is a segment (subset-scan.ts): a simple query, or messages up to a Sync or Flush. Nothing of
 * it is sent before its side is known. A transaction, and a pipeline up to its Sync, has one side: that of the first table
 * it touches. Until then it is where the session is, and if it has to go to the other side, it is rolled back here, and what
 * there was of it is run again there: BEGIN, SET LOCAL, SAVEPOINT, which leave no trace.
 *
 * Invariants:
 * - No transaction touches tables on two sides. What isn't known for certain is not sent.
 * - A statement is refused by an error of the server's own, whose words are replaced, so that the transaction fails there.
 * - Bytes leave in the order they came, or not at all, then with their whole segment.
 */
import type { Side, SubsetId } from '../../core/ports.js';
import type { NameScope } from '../../core/subset-ports.js';
import { FRONTEND, encodeFrame, encodeSync } from '../../wire/postgres/messages.js';
import { encodeRawParse, encodeRawQuery } from '../../wire/postgres/raw-text.js';
import { STATUS_FAILED, STATUS_IDLE } from '../session/response-tracker.js';
import {
  FAILED_BEFORE,
  StatementRefused,
  crossing,
  notKnown,
  reasonOf,
  spanning,
  unknown,
  type Reach,
  type RefusedStatement,
} from './reach.js';
import type { RoutedSession } from './routed-session.js';
import { SegmentReader } from './segment-reader.js';
import { type Redone, redone } from './subset-redo.js';
import type { SubsetRouting } from './subset-routing.js';
import { scan, type Segment } from './subset-scan.js';

/** Looked through for what it touches; longer texts are refused. */
export const SEGMENT_BYTES_MAX = 1_048_576;
const REDO_BYTES_MAX = 65_536;
/** PostgreSQL refuses it wherever it stands; its own words never reach the client. */
const REFUSED_TEXT = 'understudy refuses a statement';
const DURING_COPY: ReadonlySet<number> = new Set([
  FRONTEND.copyData,
  FRONTEND.copyDone,
  FRONTEND.copyFail,
  FRONTEND.sync,
  FRONTEND.flush,
  FRONTEND.terminate,
]);
export class SessionRouting {
  readonly #shared: SubsetRouting;
  readonly #session: RoutedSession;
  readonly #reader: SegmentReader;
  #state: 'resting' | 'reading' | 'moving' | 'dropping' | 'ended' = 'resting';
  /** Of what is held, so many bytes are to be sent on, or dropped. */
  #passing = 0;
  #dropped = 0;
  /** The side that the transaction or pipeline is bound to, and the subset that bound it, where one did. */
  #bound: { readonly side: Side; readonly subset: SubsetId | null } | null = null;
  /** What the transaction has done so far, while it is bound to no side. */
  #redo: Redone[] = [];
  #redoBytes = 0;
  #redoSinceChange = 0;
  /** Counts what was given up; a reading that was begun before is of no use any more. */
  #generation = 0;
  /** The transaction has set what names mean; its end may undo that. */
  #scopeSet = false;
  #flushed = false;

  constructor(shared: SubsetRouting, session: RoutedSession) {
    this.#shared = shared;
    this.#session = session;
    this.#reader = new SegmentReader(shared, session);
  }

  /** The session must not be held, nor be moved by another: it is between sides. */
  get moving(): boolean {
    return this.#state === 'moving';
  }

  /** The client is in the middle of a message that is dropped or passed on, or the session is between sides. */
  get midway(): boolean {
    return this.#state === 'moving' || this.#passing > 0 || this.#dropped > 0;
  }

  /** Nothing of what it began is under way. */
  get atRest(): boolean {
    return this.#state === 'resting' && this.#passing === 0;
  }

  end(): void {
    this.#state = 'ended';
    this.#session.moves.end();
  }

  /** What is held is answered by others, and what is open is ended by them: what was decided on it counts no more. */
  givenUp(): void {
    if (this.#state === 'ended') return;
    this.#generation += 1;
    this.#state = 'resting';
    this.#flushed = false;
    this.#reader.names.clear();
    this.#reader.forgetScope();
    this.#ended();
  }

  /** Sends on what may be sent. Call whenever something has come, or has been answered. */
  go(): void {
    const { tracker, unsent } = this.#session;
    if (unsent()) {
      // Nothing is known of what becomes of it: only the rest of it may follow.
      while (this.#passing > 0 && this.#takeDecided());
      return;
    }
    if (!tracker.owesExtended) this.#flushed = false;
    if (this.#passing === 0 && !tracker.owesExtended && !tracker.awaitingReady)
      this.#reader.names.answered(tracker.errors);
    const between = this.#passing === 0 && (this.#state === 'resting' || this.#state === 'reading');
    if (between && tracker.quiescent) this.#ended();
    while (this.#step());
  }

  /** No transaction and no pipeline is open. */
  #ended(): void {
    this.#bound = null;
    this.#redo = [];
    this.#redoBytes = 0;
    if (!this.#scopeSet) return;
    this.#scopeSet = false;
    this.#reader.forgetScope();
  }

  #step(): boolean {
    const { held, tracker, clientStream, closed, unsent } = this.#session;
    if (closed() || this.#state === 'ended') return false;
    if (this.#passing > 0 || this.#dropped > 0) return this.#takeDecided();
    if (unsent()) return false;
    if (this.#state !== 'resting' && this.#state !== 'dropping') return false;
    const header = held.peek(5);
    if (header.length < 5) return this.#leftOver(header.length);
    const type = header[0] ?? 0;
    const length = Math.max(5, header.readInt32BE(1) + 1);
    if (tracker.copy === 'in' && !DURING_COPY.has(type)) {
      // The server would end the connection over it; or run it, where its COPY has failed and the error is on its way.
      const shown = type.toString(16).padStart(2, '0');
      this.#session.terminate('08P01', `unexpected message type 0x${shown} during COPY from stdin`);
      return false;
    }
    if (clientStream.mustWait(type)) return false;
    if (this.#state === 'dropping') {
      if (type === FRONTEND.sync || type === FRONTEND.terminate) {
        this.#state = 'resting';
        this.#passing = length;
      } else this.#dropped = length;
      return true;
    }
    if (tracker.skipping) {
      // An error has come: the server itself drops everything up to the Sync.
      this.#passing = length;
      if (type === FRONTEND.sync) this.#flushed = false;
      return true;
    }
    return this.#session.mayBegin() && this.#begin();
  }

  /** What was passed on and was not sent is held again. */
  takenBack(): void {
    this.#passing = 0;
    this.givenUp();
  }

  /** Under which the last texts were read; null where that is not known any more. */
  get scope(): NameScope | null {
    return this.#reader.scope;
  }

  #takeDecided(): boolean {
    const { held, pass } = this.#session;
    const chunk = held.take(this.#passing > 0 ? this.#passing : this.#dropped);
    if (chunk === undefined) return false;
    held.taken();
    if (this.#passing > 0) {
      this.#passing -= chunk.length;
      pass(chunk);
    } else this.#dropped -= chunk.length;
    return true;
  }

  /** A client that has gone leaves what it did not finish. */
  #leftOver(bytes: number): false {
    const { clientEnded, held } = this.#session;
    if (bytes > 0 && clientEnded()) held.clear();
    return false;
  }

  #begin(): boolean {
    const { held, clientEnded } = this.#session;
    const head = held.peek(SEGMENT_BYTES_MAX);
    const scanned = scan(head, SEGMENT_BYTES_MAX);
    switch (scanned.kind) {
      case 'more':
        return clientEnded() ? this.#leftOver(head.length) : false;
      case 'malformed':
        this.#passing = head.length;
        return true;
      case 'too-long':
        return this.#refuse(head.readInt32BE(1) + 1, scanned.simple, {
          sqlState: '54000',
          message: `while subsets are on different sides a statement may have ${SEGMENT_BYTES_MAX} bytes at most`,
        });
      case 'segment':
        break;
    }
    const { segment } = scanned;
    if (segment.plain) {
      this.#passing = segment.bytes;
      return true;
    }
    const known = this.#reader.known(segment);
    if (known !== null) return this.#decide(segment, known);
    this.#state = 'reading';
    const generation = this.#generation;
    this.#reader
      .read(segment, () => generation === this.#generation)
      .then(
        (reach) => this.#haveRead(segment, reach, generation),
        (error: unknown) => {
          const refused = error instanceof StatementRefused ? error.refusal : null;
          this.#haveRead(segment, unknown(reasonOf(error)), generation, refused);
        },
      );
    return false;
  }

  #haveRead(
    segment: Segment,
    reach: Reach,
    generation: number,
    refused: RefusedStatement | null = null,
  ): void {
    if (this.#state !== 'reading' || generation !== this.#generation) return;
    this.#state = 'resting';
    const { mayBegin, closed, settle } = this.#session;
    if (closed()) return;
    // Where the gate has closed meanwhile, it is read again when it opens: routes may have changed.
    if (mayBegin()) {
      if (refused === null) this.#decide(segment, reach);
      else this.#refuse(segment.bytes, segment.simple, refused);
    }
    settle();
  }

  #decide(segment: Segment, reach: Reach): boolean {
    const { tracker, side } = this.#session;
    const refuse = (why: RefusedStatement): boolean => this.#refuse(segment.bytes, segment.simple, why);
    if (reach.unknown !== null) return refuse(notKnown(reach));
    if (reach.scopeEnd === 'used-behind' && this.#scopeSet) {
      const why = 'it ends the transaction that has set what names mean, and uses names behind that';
      return refuse(notKnown({ ...reach, unknown: why }));
    }
    const { router } = this.#shared;
    const [subset] = reach.subsets;
    if (subset === undefined) return this.#pass(segment, reach, null);
    const silent = reach.subsets.map((each) => router.unserved(each)).find((why) => why !== undefined);
    if (silent !== undefined) return refuse({ sqlState: '57P03', message: silent });
    const wanted = router.route(subset).side;
    const other = reach.subsets.find((each) => router.route(each).side !== wanted);
    if (other !== undefined) return refuse(spanning(reach.fingerprint, subset, wanted, other));
    if (tracker.status === STATUS_FAILED) this.#bound ??= { side: side(), subset: null };
    const bound = this.#bound;
    if (bound !== null && bound.side !== wanted)
      return refuse(crossing(reach.fingerprint, bound, subset, wanted));
    if (side() === wanted) return this.#pass(segment, reach, subset);
    if (!this.#nothingUnderWay()) return false;
    this.#state = 'moving';
    this.#move(segment, reach, subset, wanted).catch((error: unknown) => {
      this.#session.terminate('08006', `the session could not be moved: ${reasonOf(error)}`);
    });
    return false;
  }

  /** The server may keep back answers until it is told to flush. */
  #nothingUnderWay(): boolean {
    const { tracker, toServer } = this.#session;
    if (!tracker.owesExtended) return true;
    if (!this.#flushed) toServer(encodeFrame(FRONTEND.flush, Buffer.alloc(0)));
    this.#flushed = true;
    return false;
  }

  #pass(segment: Segment, reach: Reach, subset: SubsetId | null): boolean {
    const { side, held } = this.#session;
    if (subset !== null) this.#bound ??= { side: side(), subset };
    else if (reach.redo === 'anchor' || leavesPortal(segment)) this.#bound ??= { side: side(), subset: null };
    else if (reach.redo === 'repeat' && this.#bound === null) this.#note(segment, held.peek(segment.bytes));
    if (reach.changesScope) this.#scopeSet = true;
    if (reach.changesScope || (reach.scopeEnd !== 'none' && this.#scopeSet)) this.#reader.forgetScope();
    this.#reader.noteNames(segment);
    this.#passing = segment.bytes;
    return true;
  }

  #note(segment: Segment, bytes: Buffer): void {
    if (this.#redo.length === 0) this.#redoSinceChange = this.#session.clientStream.changes;
    this.#redoBytes += segment.bytes;
    const entry = segment.whole && this.#redoBytes <= REDO_BYTES_MAX ? redone(bytes, segment.simple) : null;
    if (entry === null) this.#bound = { side: this.#session.side(), subset: null };
    else this.#redo.push(entry);
  }

  /**
   * 1. What is open here, in which nothing has happened, is ended.
   * 2. The session goes to the other side.
   * 3. What there was of its transaction is run again there; or here, where it could not go, for its client to see it fail.
   */
  async #move(segment: Segment, reach: Reach, subset: SubsetId, wanted: Side): Promise<void> {
    const { tracker, again, moves, closed, settle, terminate, unnamedAgain, clientStream, mayBegin } =
      this.#session;
    if (tracker.unsynced) await again(encodeSync(), 'own-sync');
    if (tracker.status !== STATUS_IDLE) await again(encodeRawQuery('ROLLBACK'), 'own-query');
    const failed = await moves.to(wanted);
    if (closed()) return;
    for (const { messages, kind } of this.#redo) {
      const { sqlState } = await again(messages, kind);
      if (closed()) return;
      if (sqlState !== null) {
        terminate('57P01', `the transaction could not be begun again on the ${wanted} (${sqlState})`);
        return;
      }
    }
    // What it sets by that was undone here when the session was asked what it holds.
    if (this.#redo.length > 0 && clientStream.changes !== this.#redoSinceChange) clientStream.changes += 1;
    if (failed === null && moves.toNew && (await this.#reader.namesDiffer())) {
      terminate(
        '57P01',
        `names mean something else on the ${wanted}: its search_path or role differs by default`,
      );
      return;
    }
    if (this.#redo.length > 0) unnamedAgain();
    if (this.#state !== 'moving') return;
    this.#state = 'resting';
    // Nothing of it was sent, and the gate has closed meanwhile: it is read again when that opens.
    if (!mayBegin()) {
      settle();
      return;
    }
    if (failed !== null) this.#refuse(segment.bytes, segment.simple, failed);
    else this.#pass(segment, reach, subset);
    settle();
  }

  /** Returns whether it went on: what is under way is awaited first, as its errors must keep their own words. */
  #refuse(bytes: number, simple: boolean, error: RefusedStatement): boolean {
    if (!this.#nothingUnderWay() || this.#session.answerHere(error)) return false;
    const { tracker, clientStream, refusing, toServer, held } = this.#session;
    refusing(tracker.status === STATUS_FAILED ? FAILED_BEFORE : error);
    const callsFunction = held.peek(1)[0] === FRONTEND.functionCall;
    if (simple || callsFunction) {
      this.#dropped = bytes;
      clientStream.refusedQuery();
      toServer(encodeRawQuery(REFUSED_TEXT));
    } else {
      this.#state = 'dropping';
      clientStream.refusedExtended();
      toServer(encodeRawParse('understudy_refused', REFUSED_TEXT, []));
    }
    return true;
  }
}

/**
 * What it has bound can be run on, or its pipeline goes on behind it: neither can be taken to the other side. What only
 * prepares can.
 */
function leavesPortal({ simple, portal, synced, runs }: Segment): boolean {
  return !simple && (portal || (!synced && runs.length > 0));
}
