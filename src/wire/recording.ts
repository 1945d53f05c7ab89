/**
 * The layout of a recording: what clients sent, when, and how it went.
 *
 *   file   = "USTDYREC" · u16 version · u32 length · JSON header · u32 crc32 of the JSON · block…
 *   block  = "USRB" · u32 length · u32 crc32 of the payload · payload
 *   payload = f64 microseconds since the recording began · record…
 *   record = u8 type · varint session · varint microseconds since the record before · what the type carries
 *
 * Integers are little-endian; varints are unsigned LEB128. A block is written at once and checked as one: what a crash
 * tears off is the last block, or a part of it. Records don't span blocks, and blocks depend on nothing before them.
 */
import { crc32 } from 'node:zlib';
import { UnderstudyError } from '../core/errors.js';

export const RECORDING_VERSION = 1;
const FILE_MAGIC = Buffer.from('USTDYREC', 'latin1');
const BLOCK_MAGIC = Buffer.from('USRB', 'latin1');
export const FILE_HEAD_BYTES = 14;
export const BLOCK_HEAD_BYTES = 12;
const HEADER_BYTES_MAX = 65_536;
export const BLOCK_BYTES = 262_144;
/** Larger than any block that is written: a length above it is damage. */
const BLOCK_BYTES_MAX = 4 * BLOCK_BYTES;
/** A longer run of bytes of one client is cut into several records. */
export const PIECE_BYTES_MAX = 65_536;
/** Type, session, time, and the largest of the other fields. */
const RECORD_HEAD_BYTES_MAX = 64;

export interface RecordingHeader {
  /** Wall clock at the beginning, ISO 8601. */
  readonly startedAt: string;
  /** Of the program that wrote it. */
  readonly writer: string;
}

const TYPE = { opened: 1, sent: 2, outcome: 3, closed: 4, lost: 5, end: 6 } as const;

export type RecordingRecord =
  | {
      readonly type: 'opened';
      readonly session: number;
      readonly micros: number;
      /** Startup parameters with `user` and `database`. No password is among them. */
      readonly parameters: Readonly<Record<string, string>>;
    }
  | {
      readonly type: 'sent';
      readonly session: number;
      readonly micros: number;
      /** Sync points sent before and not answered when this was sent: the client did not wait for more than those. */
      readonly inFlight: number;
      /** The last ReadyForQuery's status, as its character code. */
      readonly status: number;
      /** A run of the client's byte stream, cut anywhere. */
      readonly bytes: Buffer;
    }
  | { readonly type: 'outcome'; readonly session: number; readonly micros: number; readonly outcome: Outcome }
  | { readonly type: 'closed' | 'lost' | 'end'; readonly session: number; readonly micros: number };

/** How one statement went. */
export interface Outcome {
  readonly durationMicros: number;
  readonly rows: number;
  /** First two characters of the SQLSTATE, the first in the lower byte; 0 where it succeeded. */
  readonly errorClass: number;
}

export function encodeFileHead(header: RecordingHeader): Buffer {
  const json = Buffer.from(JSON.stringify(header));
  const head = Buffer.alloc(FILE_HEAD_BYTES + json.length + 4);
  FILE_MAGIC.copy(head);
  head.writeUInt16LE(RECORDING_VERSION, 8);
  head.writeUInt32LE(json.length, 10);
  json.copy(head, FILE_HEAD_BYTES);
  head.writeUInt32LE(crc32(json), FILE_HEAD_BYTES + json.length);
  return head;
}

/** Length of the whole head, from its first {@link FILE_HEAD_BYTES}. Throws `recording-unreadable`. */
export function fileHeadBytes(start: Buffer): number {
  if (start.length < FILE_HEAD_BYTES || !start.subarray(0, 8).equals(FILE_MAGIC))
    throw new UnderstudyError('recording-unreadable', 'the file is no recording of Understudy');
  const version = start.readUInt16LE(8);
  if (version !== RECORDING_VERSION)
    throw new UnderstudyError(
      'recording-unreadable',
      `the recording has version ${version}; this program reads ${RECORDING_VERSION}`,
    );
  const length = start.readUInt32LE(10);
  if (length > HEADER_BYTES_MAX) throw new UnderstudyError('recording-unreadable', 'the header is damaged');
  return FILE_HEAD_BYTES + length + 4;
}

/** Throws `recording-unreadable`. */
export function decodeFileHead(head: Buffer): RecordingHeader {
  const json = head.subarray(FILE_HEAD_BYTES, head.length - 4);
  if (head.length < fileHeadBytes(head) || crc32(json) !== head.readUInt32LE(head.length - 4))
    throw new UnderstudyError('recording-unreadable', 'the header is damaged');
  return JSON.parse(json.toString()) as RecordingHeader;
}

/** Length of a block's payload, from its head; null where this is no block's head. */
export function blockBytes(head: Buffer): number | null {
  if (head.length < BLOCK_HEAD_BYTES || !head.subarray(0, 4).equals(BLOCK_MAGIC)) return null;
  const length = head.readUInt32LE(4);
  return length < 8 || length > BLOCK_BYTES_MAX ? null : length;
}

export function blockIntact(head: Buffer, payload: Buffer): boolean {
  return crc32(payload) === head.readUInt32LE(8);
}

/** Gathers records into one block. Full at {@link BLOCK_BYTES}; each `add…` says whether it had room. */
export class BlockWriter {
  #bytes = Buffer.allocUnsafeSlow(BLOCK_BYTES);
  #at = 0;
  #lastMicros = 0;

  get empty(): boolean {
    return this.#at === 0;
  }

  /** `micros` never runs backwards. */
  sent(session: number, micros: number, inFlight: number, status: number, bytes: Buffer): boolean {
    if (!this.#begin(TYPE.sent, session, micros, bytes.length)) return false;
    this.#varint(inFlight);
    this.#byte(status);
    this.#varint(bytes.length);
    bytes.copy(this.#bytes, this.#at);
    this.#at += bytes.length;
    return true;
  }

  outcome(session: number, micros: number, outcome: Outcome): boolean {
    if (!this.#begin(TYPE.outcome, session, micros, 0)) return false;
    this.#varint(outcome.durationMicros);
    this.#varint(outcome.rows);
    this.#varint(outcome.errorClass);
    return true;
  }

  opened(session: number, micros: number, json: Buffer): boolean {
    if (!this.#begin(TYPE.opened, session, micros, json.length)) return false;
    this.#varint(json.length);
    json.copy(this.#bytes, this.#at);
    this.#at += json.length;
    return true;
  }

  mark(type: 'closed' | 'lost' | 'end', session: number, micros: number): boolean {
    return this.#begin(TYPE[type], session, micros, 0);
  }

  #begin(type: number, session: number, micros: number, payloadBytes: number): boolean {
    const fresh = this.#at === 0;
    const start = fresh ? BLOCK_HEAD_BYTES + 8 : this.#at;
    if (start + RECORD_HEAD_BYTES_MAX + payloadBytes > this.#bytes.length) return false;
    if (fresh) {
      BLOCK_MAGIC.copy(this.#bytes);
      this.#bytes.writeDoubleLE(micros, BLOCK_HEAD_BYTES);
      this.#at = start;
      this.#lastMicros = micros;
    }
    this.#byte(type);
    this.#varint(session);
    this.#varint(micros - this.#lastMicros);
    this.#lastMicros = micros;
    return true;
  }

  #byte(value: number): void {
    this.#bytes[this.#at] = value;
    this.#at += 1;
  }

  #varint(value: number): void {
    let rest = Math.max(0, Math.floor(value));
    while (rest >= 0x80) {
      this.#byte((rest % 0x80) | 0x80);
      rest = Math.floor(rest / 0x80);
    }
    this.#byte(rest);
  }

  /** The block, to be written as it is; the writer begins a new one. */
  seal(): Buffer {
    const block = this.#bytes.subarray(0, this.#at);
    const payload = block.subarray(BLOCK_HEAD_BYTES);
    block.writeUInt32LE(payload.length, 4);
    block.writeUInt32LE(crc32(payload), 8);
    this.#bytes = Buffer.allocUnsafeSlow(BLOCK_BYTES);
    this.#at = 0;
    return block;
  }
}

/** The records of one intact payload; `bytes` alias it. Throws `recording-unreadable` where they don't add up. */
export function* decodeBlock(payload: Buffer): Generator<RecordingRecord> {
  const reader = new VarintReader(payload);
  let micros = reader.double();
  while (!reader.done) {
    const type = reader.byte();
    const session = reader.varint();
    micros += reader.varint();
    switch (type) {
      case TYPE.opened: {
        const json = reader.bytes(reader.varint()).toString();
        const parameters = JSON.parse(json) as Record<string, string>;
        yield { type: 'opened', session, micros, parameters };
        break;
      }
      case TYPE.sent: {
        const inFlight = reader.varint();
        const status = reader.byte();
        yield { type: 'sent', session, micros, inFlight, status, bytes: reader.bytes(reader.varint()) };
        break;
      }
      case TYPE.outcome: {
        const durationMicros = reader.varint();
        const rows = reader.varint();
        const errorClass = reader.varint();
        yield { type: 'outcome', session, micros, outcome: { durationMicros, rows, errorClass } };
        break;
      }
      case TYPE.closed:
        yield { type: 'closed', session, micros };
        break;
      case TYPE.lost:
        yield { type: 'lost', session, micros };
        break;
      case TYPE.end:
        yield { type: 'end', session, micros };
        break;
      default:
        throw new UnderstudyError('recording-unreadable', `unknown record type ${type}`);
    }
  }
}

class VarintReader {
  readonly #payload: Buffer;
  #at = 0;

  constructor(payload: Buffer) {
    this.#payload = payload;
  }

  get done(): boolean {
    return this.#at >= this.#payload.length;
  }

  double(): number {
    const value = this.bytes(8).readDoubleLE(0);
    return value;
  }

  byte(): number {
    const value = this.#payload[this.#at];
    if (value === undefined) throw new UnderstudyError('recording-unreadable', 'a record is cut');
    this.#at += 1;
    return value;
  }

  varint(): number {
    let value = 0;
    for (let scale = 1; ; scale *= 0x80) {
      const byte = this.byte();
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
      if (scale > 2 ** 49) throw new UnderstudyError('recording-unreadable', 'a number is too large');
    }
  }

  bytes(length: number): Buffer {
    const end = this.#at + length;
    if (end > this.#payload.length) throw new UnderstudyError('recording-unreadable', 'a record is cut');
    const bytes = this.#payload.subarray(this.#at, end);
    this.#at = end;
    return bytes;
  }
}
