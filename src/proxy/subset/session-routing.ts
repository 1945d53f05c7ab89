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
import type { NameScope, StatementReach } from '../../core/subset-ports.js';
import { FRONTEND, encodeFrame, encodeSync } from '../../wire/postgres/messages.js';
import { encodeRawParse, encodeRawQuery } from '../../wire/postgres/raw-text.js';
import type { ClientStream } from '../session/client-stream.js';
import type { HeldInput } from '../session/held-input.js';
import type { Reply } from '../backend/reply-reader.js';
import {
  STATUS_FAILED,
  STATUS_IDLE,
  type OwnKind,
  type ResponseTracker,
} from '../session/response-tracker.js';
import { PreparedNames } from './subset-names.js';
import type { SideMoves } from './subset-moves.js';
import { type Redone, redone } from './subset-redo.js';
import type { SubsetRouting } from './subset-routing.js';
import { scan, type Run, type Segment } from './subset-scan.js';

export interface RefusedStatement {
  readonly sqlState: string;
  readonly message: string;
  readonly hint?: string;
}

export interface RoutedSession {
  readonly tracker: ResponseTracker;
  readonly held: HeldInput;
  readonly clientStream: ClientStream;
  readonly moves: SideMoves;
  readonly side: () => Side;
  readonly closed: () => boolean;
  /** Something new may be begun: the session is served, or has a transaction to end. */
  readonly mayBegin: () => boolean;
  /** The client sends nothing more. */
  readonly clientEnded: () => boolean;
  /** To the server, as the client's own. */
  readonly pass: (chunk: Buffer) => void;
  readonly toServer: (bytes: Buffer) => void;
  /** A simple query of the proxy's own, at a settled moment, also within a transaction. */
  readonly ask: (sql: string) => Promise<Reply>;
  readonly again: (messages: Buffer, kind: OwnKind) => Promise<Reply>;
  /** After `again`, which ends the client's unnamed statement. */
  readonly unnamedAgain: () => void;
  /** The next error is told in these words. */
  readonly refusing: (error: RefusedStatement) => void;
  readonly parameter: (name: string) => string | undefined;
  readonly terminate: (sqlState: string, message: string) => void;
  /** Something may have settled. */
  readonly settle: () => void;
}

/** What a segment touches, all its texts together. */
type Reach = Omit<StatementReach, 'executes'>;

const NOTHING: Reach = {
  fingerprint: '',
  subsets: [],
  unknown: null,
  redo: 'skip',
  changesScope: false,
  scopeEnd: 'none',
};
/** Looked through for what it touches; longer texts are refused. */
const SEGMENT_BYTES_MAX = 1_048_576;
const REDO_BYTES_MAX = 65_536;
/** PostgreSQL refuses it wherever it stands; its own words never reach the client. */
const REFUSED_TEXT = 'understudy refuses a statement';
/** A text that may prepare statements by SQL, or let go of some. */
const RENAMES_STATEMENTS = /prepare|deallocate|discard/i;
const DURING_COPY: ReadonlySet<number> = new Set([
  FRONTEND.copyData,
  FRONTEND.copyDone,
  FRONTEND.copyFail,
  FRONTEND.sync,
  FRONTEND.flush,
  FRONTEND.terminate,
]);
const ASCII = /^\p{ASCII}*$/u;
/** In others a byte that looks like a quote may be half of a letter. */
const PLAIN_ENCODING = /^(?:UTF-?8|SQL_ASCII|LATIN\d+|WIN\d+|ISO_8859_\d|KOI8[RU]|EUC_\w+)$/i;

export class SessionRouting {
  readonly #shared: SubsetRouting;
  readonly #session: RoutedSession;
  readonly #names = new PreparedNames();
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
  #scope: NameScope | null = null;
  #scopeAtChange = -1;
  /** The transaction has set what names mean; its end may undo that. */
  #scopeSet = false;
  #flushed = false;

  constructor(shared: SubsetRouting, session: RoutedSession) {
    this.#shared = shared;
    this.#session = session;
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
    this.#names.clear();
    this.#scope = null;
    this.#ended();
  }

  /** Sends on what may be sent. Call whenever something has come, or has been answered. */
  go(): void {
    const { tracker } = this.#session;
    if (!tracker.owesExtended) this.#flushed = false;
    if (this.#passing === 0 && !tracker.owesExtended && !tracker.awaitingReady)
      this.#names.answered(tracker.errors);
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
    this.#scope = null;
  }

  #step(): boolean {
    const { held, tracker, clientStream, closed } = this.#session;
    if (closed() || this.#state === 'ended') return false;
    if (this.#passing > 0 || this.#dropped > 0) return this.#takeDecided();
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
    const known = this.#knownReach(segment);
    if (known !== null) return this.#decide(segment, known);
    this.#state = 'reading';
    const generation = this.#generation;
    this.#read(segment, generation).then(
      (reach) => this.#haveRead(segment, reach, generation),
      (error: unknown) => this.#haveRead(segment, unknown(reasonOf(error)), generation),
    );
    return false;
  }

  #haveRead(segment: Segment, reach: Reach, generation: number): void {
    if (this.#state !== 'reading' || generation !== this.#generation) return;
    this.#state = 'resting';
    const { mayBegin, closed, settle } = this.#session;
    if (closed()) return;
    // Where the gate has closed meanwhile, it is read again when it opens: routes may have changed.
    if (mayBegin()) this.#decide(segment, reach);
    settle();
  }

  // ------------------------------------------------------------------------------------------------- what it touches

  /** Null where somebody has to be asked. */
  #knownReach(segment: Segment): Reach | null {
    const refused = this.#unreadable(segment);
    if (refused !== null) return unknown(refused);
    if (segment.runs.length + segment.prepares.length === 0) return NOTHING;
    // Also for what only prepares: in the middle of a pipeline nobody can be asked any more.
    if (this.#scope === null || this.#scopeAtChange !== this.#settingChanges) return null;
    let reach = NOTHING;
    for (const run of segment.runs) {
      const text = this.#textOf(run);
      const read = text === undefined ? undefined : this.#shared.reaches.known(text, this.#scope);
      if (read === undefined || read.executes.length > 0) return null;
      reach = both(reach, read);
    }
    return reach;
  }

  #unreadable(segment: Segment): string | null {
    if (segment.callsFunction) return 'a function is called by its number';
    // One that is prepared keeps the meaning that it has now.
    const texts = [
      ...segment.runs.map((run) => this.#textOf(run)),
      ...segment.prepares.map(({ text }) => text),
    ];
    for (const text of texts) {
      const why = text == null ? null : this.#unreadableText(text);
      if (why !== null) return why;
    }
    return null;
  }

  /** By the settings of now. What would put them right again can be read under any. */
  #unreadableText(text: string): string | null {
    const encoding = this.#session.parameter('client_encoding') ?? '';
    if (!PLAIN_ENCODING.test(encoding) && !ASCII.test(text)) return `statements in ${encoding} can’t be read`;
    const escaped = this.#session.parameter('standard_conforming_strings') === 'off' && text.includes('\\');
    return escaped ? 'standard_conforming_strings is off, and it has a backslash' : null;
  }

  #textOf(run: Run): string | undefined {
    if (run.text !== undefined) return run.text;
    return (
      this.#names.textOf(run.statement, this.#session.tracker.errors) ??
      (run.statement === '' ? this.#unnamedText() : undefined)
    );
  }

  /** Of the unnamed statement that is alive, where it was prepared before the router was armed. */
  #unnamedText(): string | undefined {
    const payload = this.#session.clientStream.unnamedParse;
    if (payload === null || this.#names.unnamedInDoubt) return undefined;
    return payload.toString('utf8', 1, Math.max(1, payload.indexOf(0, 1)));
  }

  async #read(segment: Segment, generation: number): Promise<Reach> {
    const scope = await this.#scopeNow();
    if (scope === null) return unknown('what its names mean can’t be asked at the moment');
    // Only now it is certain what is set.
    const refused = this.#unreadable(segment);
    if (refused !== null) return unknown(refused);
    // What others prepare in front of it is not there yet.
    const alone = segment.runs.length === 1 && this.#session.tracker.settled;
    let reach = NOTHING;
    for (const run of segment.runs) {
      if (generation !== this.#generation) return unknown('it was given up');
      const text = this.#textOf(run);
      const read =
        text === undefined
          ? await this.#readPrepared(run.statement ?? '', scope, alone)
          : await this.#shared.reaches.read(text, scope);
      reach = both(reach, read);
      for (const name of read.executes) reach = both(reach, await this.#readPrepared(name, scope, alone));
    }
    return reach;
  }

  /** What the server says that a prepared statement's text is. */
  async #readPrepared(name: string, scope: NameScope, alone: boolean): Promise<StatementReach> {
    const { tracker, ask, clientStream } = this.#session;
    // The server says that there is no such statement.
    const { unnamedInDoubt } = this.#names;
    if (name === '' && !clientStream.unnamedIrreplaceable && !unnamedInDoubt)
      return { ...NOTHING, executes: [] };
    const why = `the prepared statement ${printable(name)} is not known`;
    if (name === '' || !tracker.settled || tracker.status === STATUS_FAILED) return unread(why);
    const literal = `'${Buffer.from(name, 'utf8').toString('latin1').replaceAll("'", "''")}'`;
    const { rows, sqlState } = await ask(
      `SELECT from_sql::text, statement FROM pg_catalog.pg_prepared_statements WHERE name = ${literal}`,
    );
    if (sqlState === null && rows.length === 0 && alone) return { ...NOTHING, executes: [] };
    const [fromSql, raw] = rows[0] ?? [];
    if (sqlState !== null || raw === undefined || raw === null) return unread(why);
    const text = Buffer.from(raw, 'latin1').toString('utf8');
    const unreadable = this.#unreadableText(text);
    if (unreadable !== null) return unread(unreadable);
    if (fromSql === 'true') return await this.#shared.reaches.read(text, { ...scope, prepared: true });
    this.#names.known(name, text);
    return await this.#shared.reaches.read(text, scope);
  }

  get #settingChanges(): number {
    const { changes, preparing } = this.#session.clientStream;
    return changes - preparing;
  }

  /** Whether this server says otherwise than the one by which the statement was read. */
  async #namesDiffer(): Promise<boolean> {
    const read = this.#scope;
    if (read === null || this.#session.tracker.status === STATUS_FAILED) return false;
    const here = await this.#askScope();
    return here === null || here.searchPath !== read.searchPath || here.user !== read.user;
  }

  /** Asks the server where that is not known any more. Null where it can't be asked. */
  async #scopeNow(): Promise<NameScope | null> {
    const { tracker } = this.#session;
    if (this.#scope !== null && this.#scopeAtChange === this.#settingChanges) return this.#scope;
    // A failed transaction runs nothing but its end, whatever names mean.
    if (tracker.status === STATUS_FAILED) return { searchPath: '', user: '' };
    if (!tracker.settled) return null;
    const change = this.#settingChanges;
    this.#scope = await this.#askScope();
    this.#scopeAtChange = change;
    return this.#scope;
  }

  async #askScope(): Promise<NameScope | null> {
    const { rows, sqlState } = await this.#session.ask(
      'SHOW search_path; SHOW role; SHOW session_authorization',
    );
    const [path, role, user] = rows.map((row) => Buffer.from(row[0] ?? '', 'latin1').toString('utf8'));
    if (sqlState !== null || path === undefined || role === undefined || user === undefined) return null;
    return { searchPath: path, user: role === 'none' ? user : role };
  }

  // ------------------------------------------------------------------------------------------------------- decisions

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
    if (reach.changesScope || (reach.scopeEnd !== 'none' && this.#scopeSet)) this.#scope = null;
    this.#noteNames(segment);
    this.#passing = segment.bytes;
    return true;
  }

  #noteNames(segment: Segment): void {
    const { errors } = this.#session.tracker;
    const renaming = segment.runs.some((run) => RENAMES_STATEMENTS.test(this.#textOf(run) ?? 'PREPARE'));
    if (renaming) this.#names.clear();
    for (const { name, text } of segment.prepares)
      this.#names.sent(name, renaming && name !== '' ? null : text, errors);
    if (segment.simple) this.#names.sent('', null, errors);
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
    const { tracker, again, moves, closed, settle, terminate, unnamedAgain, clientStream } = this.#session;
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
    if (failed === null && moves.toNew && (await this.#namesDiffer())) {
      terminate(
        '57P01',
        `names mean something else on the ${wanted}: its search_path or role differs by default`,
      );
      return;
    }
    if (this.#redo.length > 0) unnamedAgain();
    if (this.#state !== 'moving') return;
    this.#state = 'resting';
    if (failed !== null) this.#refuse(segment.bytes, segment.simple, failed);
    else this.#pass(segment, reach, subset);
    settle();
  }

  /** Returns whether it went on: what is under way is awaited first, as its errors must keep their own words. */
  #refuse(bytes: number, simple: boolean, error: RefusedStatement): boolean {
    if (!this.#nothingUnderWay()) return false;
    const { tracker, clientStream, refusing, toServer, held } = this.#session;
    refusing(tracker.status === STATUS_FAILED ? FAILED_BEFORE : error);
    const callsFunction = held.peek(1)[0] === FRONTEND.functionCall;
    if (simple || callsFunction) {
      this.#dropped = bytes;
      clientStream.refusedQuery();
      toServer(encodeRawQuery(REFUSED_TEXT));
    } else {
      this.#state = 'dropping';
      tracker.sentExtended();
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

function unknown(why: string): Reach {
  return { ...NOTHING, unknown: why };
}

function unread(why: string): StatementReach {
  return { ...unknown(why), executes: [] };
}

function both(one: Reach, other: Reach): Reach {
  const usesNames = other.subsets.length > 0;
  return {
    fingerprint: one.fingerprint === '' ? other.fingerprint : one.fingerprint,
    subsets: [...new Set([...one.subsets, ...other.subsets])].sort(),
    unknown:
      one.unknown ??
      other.unknown ??
      (one.changesScope && usesNames ? 'it sets what names mean and uses them at once' : null),
    redo: one.redo === 'anchor' || other.redo === 'skip' ? one.redo : other.redo,
    changesScope: one.changesScope || other.changesScope,
    scopeEnd: scopeEndOf(one, other),
  };
}

function scopeEndOf(one: Reach, other: Reach): Reach['scopeEnd'] {
  if (one.scopeEnd === 'none' || other.scopeEnd === 'used-behind') return other.scopeEnd;
  const calls = other.fingerprint !== '' && other.redo !== 'repeat' && other.scopeEnd === 'none';
  return other.subsets.length > 0 || calls ? 'used-behind' : one.scopeEnd;
}

/** What the server itself would say. */
const FAILED_BEFORE: RefusedStatement = {
  sqlState: '25P02',
  message: 'current transaction is aborted, commands ignored until end of transaction block',
};
const HINT = 'It can run once both subsets are on one side again.';

function notKnown({ fingerprint, unknown: why }: Reach): RefusedStatement {
  const which = fingerprint === '' ? 'a statement' : `statement ${fingerprint}`;
  return {
    sqlState: '0A000',
    message: `${which} can't be sent to a side while subsets are on different ones: ${why ?? ''}`,
  };
}

function spanning(fingerprint: string, one: SubsetId, side: Side, other: SubsetId): RefusedStatement {
  return {
    sqlState: '0A000',
    message: `statement ${fingerprint} spans subsets on different sides: ${one} is on the ${side}, ${other} is not`,
    hint: HINT,
  };
}

function crossing(
  fingerprint: string,
  bound: { readonly side: Side; readonly subset: SubsetId | null },
  subset: SubsetId,
  side: Side,
): RefusedStatement {
  const before = bound.subset === null ? 'what it has done before' : `subset ${bound.subset}`;
  return {
    sqlState: '0A000',
    message:
      `statement ${fingerprint} touches subset ${subset} on the ${side}, but its transaction is bound to the ` +
      `${bound.side} by ${before}`,
    hint: HINT,
  };
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function printable(raw: string): string {
  return raw.replaceAll(/[^\x20-\x7e]/g, '?');
}
