/**
 * Assembles the stream's messages into transactions, in commit order, and decides what of them counts.
 *
 * - A transaction whose first message is `apply` was written by Understudy itself: its changes came from the other
 *   side and must not go back there. They are dropped, its position counts; what their tables look like is nobody's
 *   matter, so a relation is judged by the first change of it that counts, not when the log describes it.
 * - Changes to tables that the stream's origin does not lead are dropped too; messages are read all the same. Which
 *   side leads a subset follows from the origin's own log alone: see `route` in lane.ts.
 * - A transaction larger than `partBytesMax` is handed on in parts, so that memory stays bounded.
 */
import type { LogMessage, Side, SubsetId } from '../../core/ports.js';
import { LOG_MESSAGE_PREFIX, WHOLE_DATABASE } from '../../core/ports.js';
import { UnderstudyError } from '../../core/errors.js';
import { afterMessages, authorityOf, type Authority } from '../authority.js';
import type {
  BeginMessage,
  LogicalMessage,
  OldTuple,
  PgOutputMessage,
  RelationMessage,
  Tuple,
} from '../../wire/postgres/pgoutput.js';

export type RowChange =
  | { readonly kind: 'insert'; readonly relation: RelationMessage; readonly row: Tuple }
  | {
      readonly kind: 'update';
      readonly relation: RelationMessage;
      readonly old: OldTuple | null;
      readonly row: Tuple;
    }
  | { readonly kind: 'delete'; readonly relation: RelationMessage; readonly old: OldTuple };
export interface TruncateChange {
  readonly kind: 'truncate';
  readonly relations: readonly RelationMessage[];
}
export type Change = RowChange | TruncateChange;

export interface TransactionPart {
  readonly xid: number;
  readonly commitLsn: bigint;
  /** Where a stream resumes behind the transaction; meaningful in the last part alone. */
  readonly endLsn: bigint;
  readonly last: boolean;
  readonly changes: readonly Change[];
  /** When it was committed: microseconds since 2000-01-01. */
  readonly commitMicros: bigint;
  /** What was written while the origin did not lead, by nobody of Understudy's; in the last part, and bounded. */
  readonly strays: readonly Change[];
  /** There were more. */
  readonly straysCut: boolean;
  /** Place of the first of them among the transaction's changes. */
  readonly firstChange: number;
  readonly bytes: number;
  /** Understudy's own messages of the whole transaction, in the last part. */
  readonly messages: readonly LogMessage[];
  /** Who leads behind this transaction. */
  readonly authority: Authority;
}

interface OpenTransaction {
  readonly begin: BeginMessage;
  tagged: boolean;
  empty: boolean;
  changes: Change[];
  /** Changes that went out in earlier parts. */
  before: number;
  bytes: number;
  messages: LogMessage[];
  strays: Change[];
  straysCut: boolean;
}

type RowMessage = Extract<PgOutputMessage, { kind: 'insert' | 'update' | 'delete' | 'truncate' }>;

/** Strays of one transaction that are told apart. */
const STRAYS_MAX = 1000;
/** What a change holds in memory beyond its size on the wire: its objects, and a header for each value. */
const CHANGE_OVERHEAD_BYTES = 400;

/** Reads a message of Understudy's; null for one it does not know, such as of a later version. */
export function parseLogMessage(content: string): LogMessage | null {
  let value: unknown;
  try {
    value = JSON.parse(content);
  } catch {
    return null;
  }
  if (typeof value !== 'object' || value === null || !('t' in value)) return null;
  const known = ['apply', 'low', 'high', 'mark', 'route', 'ddl'];
  return typeof value.t === 'string' && known.includes(value.t) ? (value as LogMessage) : null;
}

interface KnownRelation {
  readonly relation: RelationMessage;
  readonly subset: SubsetId;
  /** Of its changes made while the origin led, and while it did not; undefined before the first of them. */
  wantedLed: boolean | undefined;
  wantedStray: boolean | undefined;
}

export class TransactionAssembler {
  readonly #origin: Side;
  readonly #wanted: (relation: RelationMessage, led: boolean) => boolean;
  readonly #partBytesMax: number;
  readonly #notesStrays: boolean;
  readonly #subsetOf: (relation: RelationMessage) => SubsetId;
  readonly #relations = new Map<number, KnownRelation>();
  #open: OpenTransaction | null = null;
  #authority: Authority;

  constructor(
    origin: Side,
    options: {
      readonly authority: Authority;
      /** Whether the table is one of the lane's. `led`: the change was made while the origin led it. */
      readonly wanted: (relation: RelationMessage, led: boolean) => boolean;
      readonly partBytesMax: number;
      /** Absent: all of them are one. */
      readonly subsetOf?: (relation: RelationMessage) => SubsetId;
      /** Whether to tell of changes that were made while the origin did not lead. */
      readonly notesStrays?: boolean;
    },
  ) {
    this.#origin = origin;
    this.#authority = options.authority;
    this.#wanted = options.wanted;
    this.#subsetOf = options.subsetOf ?? (() => WHOLE_DATABASE);
    this.#partBytesMax = options.partBytesMax;
    this.#notesStrays = options.notesStrays ?? false;
  }

  /** Whether a transaction is being received: a keepalive's position then says nothing. */
  get inTransaction(): boolean {
    return this.#open !== null;
  }

  /** Takes the next message; returns a part once one is complete. Throws `protocol-violation` on a broken order. */
  accept(message: PgOutputMessage, bytes: number): TransactionPart | null {
    switch (message.kind) {
      case 'begin':
        if (this.#open !== null) throw broken('a transaction begins inside another');
        this.#open = {
          begin: message,
          tagged: false,
          empty: true,
          changes: [],
          before: 0,
          bytes: 0,
          messages: [],
          strays: [],
          straysCut: false,
        };
        return null;
      case 'commit':
        return this.#commit(message.endLsn);
      case 'relation':
        this.#remember(message);
        return null;
      case 'type':
      case 'origin':
        return null;
      case 'message':
        this.#logicalMessage(message);
        return null;
      default:
        return this.#change(message, bytes);
    }
  }

  #remember(message: RelationMessage): void {
    const known = this.#relations.get(message.id)?.relation;
    // The server repeats itself after every change to its caches: only another definition is another relation.
    if (known !== undefined && sameRelation(known, message)) return;
    const subset = this.#subsetOf(message);
    const unjudged = { wantedLed: undefined, wantedStray: undefined };
    this.#relations.set(message.id, { relation: message, subset, ...unjudged });
  }

  #isWanted(known: KnownRelation, led: boolean): boolean {
    if (led) return (known.wantedLed ??= this.#wanted(known.relation, true));
    return (known.wantedStray ??= this.#wanted(known.relation, false));
  }

  #logicalMessage(message: LogicalMessage): void {
    const open = this.#open;
    if (open === null || !message.transactional || message.prefix !== LOG_MESSAGE_PREFIX) return;
    const parsed = parseLogMessage(message.content);
    if (parsed?.t === 'apply') {
      if (open.empty) open.tagged = true;
    } else if (parsed !== null) {
      open.messages.push(parsed);
    }
    open.empty = false;
  }

  #change(
    message: Extract<PgOutputMessage, { kind: 'insert' | 'update' | 'delete' | 'truncate' }>,
    bytes: number,
  ): TransactionPart | null {
    const open = this.#open;
    if (open === null) throw broken('a change outside of a transaction');
    open.empty = false;
    if (open.tagged) return null;
    const change = this.#resolve(message, true);
    // A TRUNCATE may have been of tables of both kinds.
    if (change === null || message.kind === 'truncate') this.#stray(open, message, bytes);
    if (change === null) return null;
    open.changes.push(change);
    open.bytes += bytes + CHANGE_OVERHEAD_BYTES;
    return open.bytes >= this.#partBytesMax ? this.#part(open, open.begin.commitLsn, false) : null;
  }

  /** They count as any change does for whoever bounds what waits. */
  #stray(open: OpenTransaction, message: RowMessage, bytes: number): void {
    if (!this.#notesStrays || open.straysCut) return;
    const change = this.#resolve(message, false);
    if (change === null) return;
    if (open.strays.length < STRAYS_MAX && open.bytes < this.#partBytesMax) {
      open.strays.push(change);
      open.bytes += bytes + CHANGE_OVERHEAD_BYTES;
    } else {
      open.straysCut = true;
    }
  }

  /** Of the tables that the origin leads, or of those that it does not; null where there is nothing of them. */
  #resolve(message: RowMessage, led: boolean): Change | null {
    if (message.kind === 'truncate') {
      const relations = message.relationIds.flatMap((id) => {
        const known = this.#relation(id);
        return this.#leads(known) === led && this.#isWanted(known, led) ? [known.relation] : [];
      });
      return relations.length === 0 ? null : { kind: 'truncate', relations };
    }
    const known = this.#relation(message.relationId);
    const { relation } = known;
    if (this.#leads(known) !== led || !this.#isWanted(known, led)) return null;
    switch (message.kind) {
      case 'insert':
        return { kind: 'insert', relation, row: message.row };
      case 'update':
        return { kind: 'update', relation, old: message.old, row: message.row };
      case 'delete':
        return { kind: 'delete', relation, old: message.old };
    }
  }

  #leads({ subset }: KnownRelation): boolean {
    return authorityOf(this.#authority, subset).authoritative;
  }

  #relation(id: number): KnownRelation {
    const known = this.#relations.get(id);
    if (known === undefined) throw broken(`a change to relation ${id}, which was not described`);
    return known;
  }

  #commit(endLsn: bigint): TransactionPart {
    const open = this.#open;
    if (open === null) throw broken('a commit outside of a transaction');
    this.#open = null;
    this.#authority = afterMessages(this.#authority, open.messages, this.#origin);
    return this.#part(open, endLsn, true);
  }

  #part(open: OpenTransaction, endLsn: bigint, last: boolean): TransactionPart {
    const { xid, commitLsn, commitMicros } = open.begin;
    const part: TransactionPart = {
      xid,
      commitLsn,
      endLsn,
      last,
      changes: open.changes,
      commitMicros,
      strays: last ? open.strays : [],
      straysCut: open.straysCut,
      firstChange: open.before,
      bytes: open.bytes,
      messages: last ? open.messages : [],
      authority: this.#authority,
    };
    open.before += open.changes.length;
    open.changes = [];
    open.bytes = 0;
    return part;
  }
}

function broken(what: string): UnderstudyError {
  return new UnderstudyError('protocol-violation', `pgoutput: ${what}`);
}

function sameRelation(a: RelationMessage, b: RelationMessage): boolean {
  return (
    a.schema === b.schema &&
    a.name === b.name &&
    a.replicaIdentity === b.replicaIdentity &&
    a.columns.length === b.columns.length &&
    a.columns.every((column, index) => {
      const other = b.columns[index];
      return (
        other !== undefined &&
        column.name === other.name &&
        column.typeOid === other.typeOid &&
        column.typeModifier === other.typeModifier
      );
    })
  );
}
