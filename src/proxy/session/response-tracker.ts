/**
 * Knows, exactly, what a backend still owes an answer to.
 *
 * A ring of tokens, one per sync point and one per run of extended messages in front of it, in the order sent:
 *
 *   sent:    P B D E S   Q   P B E H                 tokens: [extended 4][sync][query][extended 3]
 *   answered: 1 2 T …C Z   …Z   1 2                          gone        gone   gone    [extended 1], not synced yet
 *
 * - `extended n`: n responses are owed to Parse, Bind, Describe, Close, Execute. Stays at the tail with n = 0 until a
 *   sync point follows it: a half-sent pipeline.
 * - `sync`, `query`, `function`: each is owed one ReadyForQuery. `own-query`, `own-sync`: the same, but the proxy sent
 *   it, and the answers are swallowed.
 * - `copy-end`: CopyDone or CopyFail sent before the server said CopyInResponse.
 *
 * Rules of the protocol that make the count exact:
 * - An error in an extended message makes the server skip everything up to the next Sync, simple queries included.
 * - In copy-in mode the server ignores Sync and Flush, also those sent before it announced the mode. libpq relies on
 *   it: it sends Sync right after Execute, before it knows that a COPY follows.
 * - Any message in copy-in mode but data, its end, Flush and Sync ends the mode with an error, and is swallowed by it
 *   (from 14 on the server closes the connection).
 * https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-COPY
 */
import { UnderstudyError } from '../../core/errors.js';

export type OwnKind = 'own-query' | 'own-sync';

const EXTENDED = 0;
const SYNC = 1;
const QUERY = 2;
const FUNCTION = 3;
const OWN_QUERY = 4;
const OWN_SYNC = 5;
const COPY_END = 6;

/** none · in: the server reads COPY data · out: it sends COPY data · both: replication; never ends for us. */
export type CopyMode = 'none' | 'in' | 'out' | 'both';

export const STATUS_IDLE = 0x49;
export const STATUS_IN_TRANSACTION = 0x54;
export const STATUS_FAILED = 0x45;

export class ResponseTracker {
  /** Kind in the low three bits, count above. */
  #tokens = new Uint32Array(16);
  #head = 0;
  #size = 0;
  /** Outstanding tokens that are owed a ReadyForQuery. */
  #syncPoints = 0;
  /** The server reads and ignores everything up to the next Sync, which has not been sent yet. */
  #skipping = false;
  #copy: CopyMode = 'none';
  /** Sync points that were answered; numbers the segments between them. */
  answered = 0;
  /** Errors that have come. */
  errors = 0;
  /** Sync points that were sent. */
  sent = 0;
  /** The last ReadyForQuery's status byte. */
  status: number = STATUS_IDLE;

  get copy(): CopyMode {
    return this.#copy;
  }

  /** A sync point has been sent and its ReadyForQuery has not come. */
  get awaitingReady(): boolean {
    return this.#syncPoints > 0;
  }

  /** Answers to extended messages are due that the server may keep back until a Flush or Sync. */
  get owesExtended(): boolean {
    return this.#headKind() === EXTENDED && (this.#tokens[this.#head] as number) >>> 3 > 0;
  }

  get depth(): number {
    return this.#size;
  }

  /** Nothing is owed, no pipeline is half sent, no COPY is open. A transaction may be. */
  get settled(): boolean {
    return this.#size === 0 && !this.#skipping && this.#copy === 'none';
  }

  /** The server reads and drops everything up to a Sync that has not been sent. */
  get skipping(): boolean {
    return this.#skipping;
  }

  /** Settled, and outside a transaction. */
  get quiescent(): boolean {
    return this.settled && this.status === STATUS_IDLE;
  }

  /** A pipeline was begun and not synced. */
  get unsynced(): boolean {
    return this.#skipping || (this.#size > 0 && this.#kindAt(this.#size - 1) === EXTENDED);
  }

  /** The oldest outstanding answer is to a message of the proxy's own. */
  get ownAtHead(): boolean {
    const kind = this.#headKind();
    return kind === OWN_QUERY || kind === OWN_SYNC;
  }

  /** The answers at hand belong to a simple query. */
  get queryAtHead(): boolean {
    return this.#headKind() === QUERY;
  }

  // ------------------------------------------------------------------------------------------------ what was sent

  /** Parse, Bind, Describe, Close or Execute. */
  sentExtended(): void {
    if (this.#skipping) return;
    if (this.#copy === 'in') {
      this.#copy = 'none';
      return;
    }
    if (this.#size > 0 && this.#kindAt(this.#size - 1) === EXTENDED) {
      this.#addAt(this.#size - 1, 1);
    } else {
      this.#push(EXTENDED, 1);
    }
  }

  sentSync(): void {
    // Ignored by a server in copy-in mode: no ReadyForQuery will come for it.
    if (this.#copy === 'in') return;
    this.#skipping = false;
    this.#push(SYNC, 0);
  }

  sentQuery(): void {
    this.#sentSimple(QUERY);
  }

  sentFunctionCall(): void {
    this.#sentSimple(FUNCTION);
  }

  sentOwn(kind: OwnKind): void {
    this.#push(kind === 'own-query' ? OWN_QUERY : OWN_SYNC, 0);
  }

  /** CopyDone or CopyFail. */
  sentCopyEnd(): void {
    if (this.#copy === 'in') this.#copy = 'none';
    else if (!this.#skipping && this.#size > 0 && this.#copy === 'none') this.#push(COPY_END, 0);
  }

  #sentSimple(kind: number): void {
    if (this.#skipping) return;
    if (this.#copy === 'in') {
      this.#copy = 'none';
      return;
    }
    this.#push(kind, 0);
  }

  // -------------------------------------------------------------------------------------------- what was answered

  /** ParseComplete, BindComplete, CloseComplete, RowDescription or NoData, CommandComplete, … */
  gotResponse(): void {
    this.#dropCopyEnds();
    if (this.#headKind() !== EXTENDED) return;
    const index = this.#head;
    const token = this.#tokens[index] as number;
    if (token >>> 3 > 0) this.#tokens[index] = token - 8;
    this.#retireExtended();
  }

  /** ErrorResponse that is not FATAL. Returns whether it answers an extended message. */
  gotError(): boolean {
    this.errors += 1;
    if (this.#copy !== 'both') this.#copy = 'none';
    this.#dropCopyEnds();
    if (this.#headKind() !== EXTENDED || (this.#tokens[this.#head] as number) >>> 3 === 0) return false;
    // Everything up to the next Sync is skipped by the server.
    while (this.#size > 0 && this.#headKind() !== SYNC && this.#headKind() !== OWN_SYNC) {
      if (isSyncPoint(this.#headKind())) this.answered += 1;
      this.#shift();
    }
    if (this.#size === 0) this.#skipping = true;
    return true;
  }

  gotCopyIn(): void {
    this.#copy = 'in';
    if (this.#headKind() !== EXTENDED) {
      // A simple query: only an end that was sent ahead matters.
      if (this.#removeFirst(COPY_END)) this.#copy = 'none';
      return;
    }
    // Syncs sent behind the Execute, up to the end of the data, are read in copy-in mode and ignored.
    for (let index = 1; index < this.#size;) {
      const kind = this.#kindAt(index);
      if (kind === COPY_END) {
        this.#removeAt(index);
        this.#copy = 'none';
        return;
      }
      if (kind !== SYNC) break;
      this.#removeAt(index);
    }
  }

  gotCopyOut(): void {
    this.#copy = 'out';
  }

  gotCopyBoth(): void {
    this.#copy = 'both';
  }

  /** CommandComplete and the like: a COPY that was running is over. */
  gotStatementEnd(): void {
    if (this.#copy !== 'both') this.#copy = 'none';
  }

  gotReady(status: number): void {
    this.status = status;
    if (this.#copy !== 'both') this.#copy = 'none';
    this.answered += 1;
    while (this.#size > 0) {
      const kind = this.#headKind();
      this.#shift();
      if (kind !== EXTENDED && kind !== COPY_END) break;
    }
    this.#dropCopyEnds();
    this.#retireExtended();
  }

  /** Forgets everything: the session moved to a backend that has been sent nothing. */
  reset(): void {
    this.#head = 0;
    this.#size = 0;
    this.#syncPoints = 0;
    this.#skipping = false;
    this.#copy = 'none';
    this.status = STATUS_IDLE;
    this.answered = this.sent;
  }

  // --------------------------------------------------------------------------------------------------- the ring

  #headKind(): number {
    return this.#size === 0 ? -1 : (this.#tokens[this.#head] as number) & 7;
  }

  #kindAt(index: number): number {
    return (this.#tokens[(this.#head + index) & (this.#tokens.length - 1)] as number) & 7;
  }

  #addAt(index: number, count: number): void {
    const at = (this.#head + index) & (this.#tokens.length - 1);
    this.#tokens[at] = (this.#tokens[at] as number) + count * 8;
  }

  #push(kind: number, count: number): void {
    if (this.#size === this.#tokens.length) this.#grow();
    this.#tokens[(this.#head + this.#size) & (this.#tokens.length - 1)] = kind | (count << 3);
    this.#size += 1;
    if (isSyncPoint(kind)) {
      this.#syncPoints += 1;
      this.sent += 1;
    }
    this.#retireExtended();
  }

  #shift(): void {
    if (isSyncPoint(this.#headKind())) this.#syncPoints -= 1;
    this.#head = (this.#head + 1) & (this.#tokens.length - 1);
    this.#size -= 1;
  }

  /** Answered runs of extended messages leave once something follows them. */
  #retireExtended(): void {
    while (
      this.#size > 1 &&
      this.#headKind() === EXTENDED &&
      (this.#tokens[this.#head] as number) >>> 3 === 0
    ) {
      this.#shift();
    }
  }

  /** Ends of COPYs that never began: the server drops them. */
  #dropCopyEnds(): void {
    while (this.#headKind() === COPY_END) this.#shift();
  }

  #removeFirst(kind: number): boolean {
    for (let index = 0; index < this.#size; index++) {
      if (this.#kindAt(index) !== kind) continue;
      this.#removeAt(index);
      return true;
    }
    return false;
  }

  #removeAt(index: number): void {
    const mask = this.#tokens.length - 1;
    if (isSyncPoint(this.#kindAt(index))) {
      this.#syncPoints -= 1;
      this.answered += 1;
    }
    for (let at = index; at < this.#size - 1; at++) {
      this.#tokens[(this.#head + at) & mask] = this.#tokens[(this.#head + at + 1) & mask] as number;
    }
    this.#size -= 1;
  }

  #grow(): void {
    if (this.#tokens.length >= TOKENS_MAX) {
      throw new UnderstudyError('limit-reached', `more than ${TOKENS_MAX} messages await an answer`);
    }
    const grown = new Uint32Array(this.#tokens.length * 2);
    for (let index = 0; index < this.#size; index++) {
      grown[index] = this.#tokens[(this.#head + index) & (this.#tokens.length - 1)] as number;
    }
    this.#tokens = grown;
    this.#head = 0;
  }
}

/** Far above where the session stops reading its client. */
const TOKENS_MAX = 1 << 20;

function isSyncPoint(kind: number): boolean {
  return kind >= SYNC && kind <= OWN_SYNC;
}
