/**
 * The messages of the `pgoutput` logical decoding plugin, protocol version 1 with `messages`.
 * https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
 *
 * Pure: one message in, one object out. Nothing returned aliases the input, whose memory the caller may reuse, but
 * large values: the caller that asks for them keeps a message that holds one.
 */
import { UnderstudyError } from '../../core/errors.js';

/**
 * One column of a tuple. string: the type's text form. Buffer: the same in UTF-8, of a large value: V8 holds no string
 * beyond 512 MB, PostgreSQL values of up to 1 GB. undefined: an out-of-line value that the change left as it was,
 * which the log does not carry.
 */
export type TupleValue = string | Buffer | null | undefined;
export type Tuple = readonly TupleValue[];

export interface RelationColumn {
  readonly name: string;
  /** Part of the replica identity; every column where the identity is FULL. */
  readonly identity: boolean;
  readonly typeOid: number;
  readonly typeModifier: number;
}

export interface RelationMessage {
  readonly kind: 'relation';
  readonly id: number;
  readonly schema: string;
  readonly name: string;
  /** pg_class.relreplident: d default, n nothing, f full, i index. */
  readonly replicaIdentity: string;
  readonly columns: readonly RelationColumn[];
}

export interface BeginMessage {
  readonly kind: 'begin';
  /** Position of the commit record. */
  readonly commitLsn: bigint;
  /** Microseconds since 2000-01-01. */
  readonly commitMicros: bigint;
  /** The low 32 bits of the transaction's id. */
  readonly xid: number;
}

export interface CommitMessage {
  readonly kind: 'commit';
  readonly commitLsn: bigint;
  /** The first position after the transaction: where a stream resumes behind it. */
  readonly endLsn: bigint;
  readonly commitMicros: bigint;
}

export interface OriginMessage {
  readonly kind: 'origin';
  readonly commitLsn: bigint;
  readonly name: string;
}

export interface TypeMessage {
  readonly kind: 'type';
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
}

export interface InsertMessage {
  readonly kind: 'insert';
  readonly relationId: number;
  readonly row: Tuple;
}

/** The row before the change: its identity's columns alone (`key`), or all of them. */
export interface OldTuple {
  readonly kind: 'key' | 'full';
  readonly row: Tuple;
}

export interface UpdateMessage {
  readonly kind: 'update';
  readonly relationId: number;
  /** Absent where the identity did not change and is not FULL. */
  readonly old: OldTuple | null;
  readonly row: Tuple;
}

export interface DeleteMessage {
  readonly kind: 'delete';
  readonly relationId: number;
  readonly old: OldTuple;
}

export interface TruncateMessage {
  readonly kind: 'truncate';
  readonly relationIds: readonly number[];
  readonly cascade: boolean;
  readonly restartIdentity: boolean;
}

export interface LogicalMessage {
  readonly kind: 'message';
  readonly transactional: boolean;
  readonly lsn: bigint;
  readonly prefix: string;
  readonly content: string;
}

export type PgOutputMessage =
  | BeginMessage
  | CommitMessage
  | OriginMessage
  | RelationMessage
  | TypeMessage
  | InsertMessage
  | UpdateMessage
  | DeleteMessage
  | TruncateMessage
  | LogicalMessage;

const TRUNCATE_CASCADE = 1;
const TRUNCATE_RESTART_IDENTITY = 2;
const MESSAGE_TRANSACTIONAL = 1;
const COLUMN_IN_IDENTITY = 1;

function malformed(what: string): never {
  throw new UnderstudyError('protocol-violation', `pgoutput: ${what}`);
}

/**
 * A call into Node's decoder costs more than most values are long: short ASCII ones, numbers above all, are put
 * together here.
 */
function textAt(bytes: Buffer, at: number, length: number): string {
  const { fromCharCode } = String;
  const a = bytes[at] ?? 0;
  const b = bytes[at + 1] ?? 0;
  const c = bytes[at + 2] ?? 0;
  const d = bytes[at + 3] ?? 0;
  switch (length) {
    case 0:
      return '';
    case 1:
      if (a < 128) return fromCharCode(a);
      break;
    case 2:
      if ((a | b) < 128) return fromCharCode(a, b);
      break;
    case 3:
      if ((a | b | c) < 128) return fromCharCode(a, b, c);
      break;
    case 4:
      if ((a | b | c | d) < 128) return fromCharCode(a, b, c, d);
      break;
    case 5: {
      const e = bytes[at + 4] ?? 0;
      if ((a | b | c | d | e) < 128) return fromCharCode(a, b, c, d, e);
      break;
    }
    case 6: {
      const e = bytes[at + 4] ?? 0;
      const f = bytes[at + 5] ?? 0;
      if ((a | b | c | d | e | f) < 128) return fromCharCode(a, b, c, d, e, f);
      break;
    }
    case 7: {
      const e = bytes[at + 4] ?? 0;
      const f = bytes[at + 5] ?? 0;
      const g = bytes[at + 6] ?? 0;
      if ((a | b | c | d | e | f | g) < 128) return fromCharCode(a, b, c, d, e, f, g);
      break;
    }
    default:
  }
  return bytes.toString('utf8', at, at + length);
}

/** Values beyond it stay bytes: nothing here looks into one, and a string would be a second copy of it. */
export const LARGE_VALUE_BYTES = 1024 * 1024;

/** Walks one message; every read checks that it stays inside. */
class Reader {
  readonly #bytes: Buffer;
  readonly #end: number;
  readonly #largeBytes: number;
  #at: number;

  constructor(bytes: Buffer, start: number, end: number, largeBytes: number) {
    this.#bytes = bytes;
    this.#at = start;
    this.#end = end;
    this.#largeBytes = largeBytes;
  }

  #take(length: number): number {
    const at = this.#at;
    if (length < 0 || at + length > this.#end) malformed('a message ends too early');
    this.#at = at + length;
    return at;
  }

  byte(): number {
    const at = this.#take(1);
    return this.#bytes[at] ?? 0;
  }

  int16(): number {
    const at = this.#take(2);
    return this.#bytes.readInt16BE(at);
  }

  int32(): number {
    const at = this.#take(4);
    const bytes = this.#bytes;
    // `#take` has checked the bounds; Node's own reader checks them again.
    return (
      ((bytes[at] ?? 0) << 24) |
      ((bytes[at + 1] ?? 0) << 16) |
      ((bytes[at + 2] ?? 0) << 8) |
      (bytes[at + 3] ?? 0)
    );
  }

  uint32(): number {
    const at = this.#take(4);
    return this.#bytes.readUInt32BE(at);
  }

  uint64(): bigint {
    const at = this.#take(8);
    return this.#bytes.readBigUInt64BE(at);
  }

  int64(): bigint {
    const at = this.#take(8);
    return this.#bytes.readBigInt64BE(at);
  }

  text(length: number): string {
    const at = this.#take(length);
    return textAt(this.#bytes, at, length);
  }

  value(length: number): string | Buffer {
    if (length <= this.#largeBytes) return this.text(length);
    const at = this.#take(length);
    return this.#bytes.subarray(at, at + length);
  }

  tuple(): Tuple {
    const count = this.int16();
    if (count < 0) malformed('a tuple has a negative number of columns');
    const row: TupleValue[] = [];
    for (let index = 0; index < count; index++) {
      const form = this.byte();
      switch (form) {
        case 0x74: // t
          row.push(this.value(this.int32()));
          break;
        case 0x6e: // n
          row.push(null);
          break;
        case 0x75: // u
          row.push(undefined);
          break;
        default:
          // `b`, binary, among them: nobody asks for it.
          malformed(`unknown column form ${form}`);
      }
    }
    return row;
  }

  cstring(): string {
    const end = this.#bytes.indexOf(0, this.#at);
    if (end < 0 || end >= this.#end) malformed('a name is not terminated');
    const text = this.#bytes.toString('utf8', this.#at, end);
    this.#at = end + 1;
    return text;
  }

  end(): void {
    if (this.#at !== this.#end) malformed('bytes follow a message');
  }
}

function readTuple(reader: Reader): Tuple {
  return reader.tuple();
}

function readOld(form: number, reader: Reader): OldTuple {
  if (form === 0x4b /* K */) return { kind: 'key', row: readTuple(reader) };
  if (form === 0x4f /* O */) return { kind: 'full', row: readTuple(reader) };
  return malformed(`unknown tuple form ${form}`);
}

function readNew(form: number, reader: Reader): Tuple {
  if (form !== 0x4e /* N */) malformed(`unknown tuple form ${form}`);
  return readTuple(reader);
}

function readUpdate(reader: Reader): UpdateMessage {
  const relationId = reader.uint32();
  const form = reader.byte();
  if (form === 0x4e) return { kind: 'update', relationId, old: null, row: readTuple(reader) };
  const old = readOld(form, reader);
  return { kind: 'update', relationId, old, row: readNew(reader.byte(), reader) };
}

function readRelation(reader: Reader): RelationMessage {
  const id = reader.uint32();
  // The server sends an empty name for pg_catalog.
  const schema = reader.cstring() || 'pg_catalog';
  const name = reader.cstring();
  const replicaIdentity = String.fromCharCode(reader.byte());
  const count = reader.int16();
  if (count < 0) malformed('a relation has a negative number of columns');
  const columns: RelationColumn[] = [];
  for (let index = 0; index < count; index++) {
    const flags = reader.byte();
    columns.push({
      name: reader.cstring(),
      identity: (flags & COLUMN_IN_IDENTITY) !== 0,
      typeOid: reader.uint32(),
      typeModifier: reader.int32(),
    });
  }
  return { kind: 'relation', id, schema, name, replicaIdentity, columns };
}

function readTruncate(reader: Reader): TruncateMessage {
  const count = reader.int32();
  const flags = reader.byte();
  if (count < 0) malformed('a truncation names a negative number of relations');
  const relationIds: number[] = [];
  for (let index = 0; index < count; index++) relationIds.push(reader.uint32());
  return {
    kind: 'truncate',
    relationIds,
    cascade: (flags & TRUNCATE_CASCADE) !== 0,
    restartIdentity: (flags & TRUNCATE_RESTART_IDENTITY) !== 0,
  };
}

function readLogicalMessage(reader: Reader): LogicalMessage {
  const flags = reader.byte();
  const lsn = reader.uint64();
  const prefix = reader.cstring();
  const content = reader.text(reader.int32());
  return { kind: 'message', transactional: (flags & MESSAGE_TRANSACTIONAL) !== 0, lsn, prefix, content };
}

function readBody(type: number, reader: Reader): PgOutputMessage {
  switch (type) {
    case 0x42: // B
      return {
        kind: 'begin',
        commitLsn: reader.uint64(),
        commitMicros: reader.int64(),
        xid: reader.uint32(),
      };
    case 0x43: // C
      reader.byte(); // Flags, none defined.
      return {
        kind: 'commit',
        commitLsn: reader.uint64(),
        endLsn: reader.uint64(),
        commitMicros: reader.int64(),
      };
    case 0x4f: // O
      return { kind: 'origin', commitLsn: reader.uint64(), name: reader.cstring() };
    case 0x52: // R
      return readRelation(reader);
    case 0x59: // Y
      return {
        kind: 'type',
        oid: reader.uint32(),
        schema: reader.cstring() || 'pg_catalog',
        name: reader.cstring(),
      };
    case 0x49: // I
      return { kind: 'insert', relationId: reader.uint32(), row: readNew(reader.byte(), reader) };
    case 0x55: // U
      return readUpdate(reader);
    case 0x44: // D
      return { kind: 'delete', relationId: reader.uint32(), old: readOld(reader.byte(), reader) };
    case 0x54: // T
      return readTruncate(reader);
    case 0x4d: // M
      return readLogicalMessage(reader);
    default:
      return malformed(`unknown message type ${type}`);
  }
}

/**
 * Decodes the message that lies in `bytes` from `start` to `end`, without its XLogData header. Values of more than
 * `largeBytes` alias it. Throws `protocol-violation` on anything malformed.
 */
export function decodePgOutput(
  bytes: Buffer,
  start = 0,
  end = bytes.length,
  largeBytes = LARGE_VALUE_BYTES,
): PgOutputMessage {
  const reader = new Reader(bytes, start, end, largeBytes);
  const message = readBody(reader.byte(), reader);
  reader.end();
  return message;
}
