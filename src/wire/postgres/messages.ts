/**
 * Layouts of PostgreSQL protocol 3.0 messages: type bytes, encoders, and parsers for the few payloads that are ever
 * looked into. Pure; no sockets.
 *
 * A frame is one type byte, an Int32 length that counts itself but not the type byte, and a payload. Parsers here
 * take the *payload* alone. Frames of the startup phase are in startup.ts.
 * https://www.postgresql.org/docs/current/protocol-message-formats.html
 */
import { isUtf8 } from 'node:buffer';
import { UnderstudyError } from '../../core/errors.js';

/** Type byte and length field. */
export const FRAME_HEADER_BYTES = 5;

/** Type bytes sent by clients. One byte may mean different things in each direction, so they are kept apart. */
export const FRONTEND = {
  /** B: binds a portal to a prepared statement. */
  bind: 0x42,
  /** C: closes a statement or portal; what it named must not be replayed after a move. */
  close: 0x43,
  /** d: a piece of COPY data. */
  copyData: 0x64,
  /** c: COPY ends well. */
  copyDone: 0x63,
  /** f: COPY is given up by the client. */
  copyFail: 0x66,
  /** D: asks for a statement's or portal's description. */
  describe: 0x44,
  /** E: runs a portal. */
  execute: 0x45,
  /** H: asks for pending output without ending the batch. */
  flush: 0x48,
  /** F: legacy fast path; carries function OIDs. */
  functionCall: 0x46,
  /** P: makes a prepared statement; kept, to be made again on the other side. */
  parse: 0x50,
  /** p: password, SASL initial response and SASL response share it. */
  password: 0x70,
  /** Q: simple query. */
  query: 0x51,
  /** S: ends an extended batch; answered by ReadyForQuery. */
  sync: 0x53,
  /** X: the client says goodbye. */
  terminate: 0x58,
} as const;

/** Type bytes sent by servers. */
export const BACKEND = {
  /** R: authentication requests and their end. */
  authentication: 0x52,
  /** K: process id and secret for CancelRequest; never relayed, the proxy has its own. */
  backendKeyData: 0x4b,
  /** 2: Bind was accepted. */
  bindComplete: 0x32,
  /** 3: Close was accepted. */
  closeComplete: 0x33,
  /** C: a statement ended; the tag tells its kind and row count. */
  commandComplete: 0x43,
  /** d: a piece of COPY data. */
  copyData: 0x64,
  /** c: the server's COPY ended. */
  copyDone: 0x63,
  /** G: the server waits for COPY data. */
  copyInResponse: 0x47,
  /** H: the server will send COPY data. */
  copyOutResponse: 0x48,
  /** W: both ways; replication only. */
  copyBothResponse: 0x57,
  /** D: one row. */
  dataRow: 0x44,
  /** I: an empty query string ended. */
  emptyQueryResponse: 0x49,
  /** E: an error; ends the statement, or the connection when FATAL. */
  errorResponse: 0x45,
  /** V: answer to FunctionCall. */
  functionCallResponse: 0x56,
  /** v: the server speaks an older minor version, or does not know an option. */
  negotiateProtocolVersion: 0x76,
  /** n: the statement returns no rows. */
  noData: 0x6e,
  /** N: a notice; may come at any time. */
  noticeResponse: 0x4e,
  /** A: NOTIFY; may come at any time. */
  notificationResponse: 0x41,
  /** t: OIDs of a statement's parameters. */
  parameterDescription: 0x74,
  /** S: a setting clients follow; may come at any time. */
  parameterStatus: 0x53,
  /** 1: Parse was accepted. */
  parseComplete: 0x31,
  /** s: Execute stopped at its row limit. */
  portalSuspended: 0x73,
  /** Z: the server is idle; carries the transaction status. */
  readyForQuery: 0x5a,
  /** T: columns of the rows to come. */
  rowDescription: 0x54,
} as const;

/** ReadyForQuery's status: idle, in a transaction, in a failed transaction. */
export type TransactionStatus = 'I' | 'T' | 'E';

export type Severity = 'ERROR' | 'FATAL';

export interface ErrorResponseFields {
  readonly severity?: Severity;
  /** Five characters; https://www.postgresql.org/docs/current/errcodes-appendix.html */
  readonly sqlState: string;
  readonly message: string;
  readonly detail?: string;
  readonly hint?: string;
}

export interface ParsedError {
  /** The untranslated severity (field V) where the server sends it, else field S. */
  readonly severity: string;
  readonly sqlState: string;
  readonly message: string;
  readonly detail?: string;
  readonly hint?: string;
}

/** One frame of `type` around `payload`. */
export function encodeFrame(type: number, payload: Buffer): Buffer {
  const frame = Buffer.allocUnsafe(FRAME_HEADER_BYTES + payload.length);
  frame[0] = type;
  frame.writeInt32BE(payload.length + 4, 1);
  payload.copy(frame, FRAME_HEADER_BYTES);
  return frame;
}

/** Bytes above 0x7f of a string that is not UTF-8 stand in text as lone surrogates from here on, which no valid UTF-8
 *  decodes to. */
const ESCAPE_BASE = 0xdc00;
const ESCAPED = /([\udc80-\udcff])/u;

/**
 * Bytes as text that {@link encodeText} gives back unchanged. Names and settings come in whatever encoding the client
 * chose: what is not UTF-8 keeps each of its high bytes as a lone surrogate.
 */
export function decodeText(bytes: Buffer): string {
  if (isUtf8(bytes)) return bytes.toString('utf8');
  let text = '';
  for (const byte of bytes) text += String.fromCharCode(byte < 0x80 ? byte : ESCAPE_BASE + byte);
  return text;
}

export function encodeText(text: string): Buffer {
  if (!ESCAPED.test(text)) return Buffer.from(text, 'utf8');
  const parts = text.split(ESCAPED);
  // The pattern's group makes every second part an escaped byte.
  return Buffer.concat(
    parts.map((part, index) =>
      index % 2 === 0 ? Buffer.from(part, 'utf8') : Buffer.from([part.charCodeAt(0) & 0xff]),
    ),
  );
}

/** A protocol string. A zero byte inside would silently end it early, so it is refused. */
export function encodeCString(text: string): Buffer {
  if (text.includes('\0')) throw new UnderstudyError('internal', 'a protocol string can’t hold a zero byte');
  return encodeText(`${text}\0`);
}

/** ErrorResponse; severity is ERROR unless given. Severity is sent twice: S may be translated, V never is. */
export function encodeErrorResponse(fields: ErrorResponseFields): Buffer {
  const severity = fields.severity ?? 'ERROR';
  const parts: Buffer[] = [];
  const add = (code: string, value: string): void => {
    // Texts may come from a peer's bytes; a zero in one must not end the field early.
    parts.push(encodeText(`${code}${value.replaceAll('\0', '')}\0`));
  };
  add('S', severity);
  add('V', severity);
  add('C', fields.sqlState);
  add('M', fields.message);
  if (fields.detail !== undefined) add('D', fields.detail);
  if (fields.hint !== undefined) add('H', fields.hint);
  parts.push(Buffer.from([0]));
  return encodeFrame(BACKEND.errorResponse, Buffer.concat(parts));
}

export function encodeReadyForQuery(status: TransactionStatus): Buffer {
  return encodeFrame(BACKEND.readyForQuery, Buffer.from(status, 'latin1'));
}

export function encodeParameterStatus(name: string, value: string): Buffer {
  return encodeFrame(BACKEND.parameterStatus, Buffer.concat([encodeCString(name), encodeCString(value)]));
}

/** `pid` is an unsigned 32-bit number; `secret` 4 bytes in protocol 3.0. */
export function encodeBackendKeyData(pid: number, secret: Buffer): Buffer {
  const payload = Buffer.allocUnsafe(4 + secret.length);
  payload.writeUInt32BE(pid, 0);
  secret.copy(payload, 4);
  return encodeFrame(BACKEND.backendKeyData, payload);
}

export function encodeCommandComplete(tag: string): Buffer {
  return encodeFrame(BACKEND.commandComplete, encodeCString(tag));
}

export function encodeQuery(sql: string): Buffer {
  return encodeFrame(FRONTEND.query, encodeCString(sql));
}

/** Parse. `oids` gives parameter types; 0 leaves one to the server. */
export function encodeParse(name: string, sql: string, oids: readonly number[]): Buffer {
  const types = Buffer.allocUnsafe(2 + 4 * oids.length);
  types.writeUInt16BE(oids.length, 0);
  for (const [index, oid] of oids.entries()) types.writeUInt32BE(oid, 2 + 4 * index);
  return encodeFrame(FRONTEND.parse, Buffer.concat([encodeCString(name), encodeCString(sql), types]));
}

export function encodeSync(): Buffer {
  return encodeFrame(FRONTEND.sync, Buffer.alloc(0));
}

export function encodeTerminate(): Buffer {
  return encodeFrame(FRONTEND.terminate, Buffer.alloc(0));
}

/**
 * Reads a payload front to back. Every read past the end throws `protocol-violation`, so that a lying length inside
 * a message can't read into whatever lies behind it.
 */
export class PayloadReader {
  readonly #payload: Buffer;
  readonly #what: string;
  #offset = 0;

  constructor(payload: Buffer, what: string) {
    this.#payload = payload;
    this.#what = what;
  }

  get remaining(): number {
    return this.#payload.length - this.#offset;
  }

  byte(): number {
    const at = this.#take(1);
    return this.#payload.readUInt8(at);
  }

  int16(): number {
    return this.#payload.readInt16BE(this.#take(2));
  }

  int32(): number {
    return this.#payload.readInt32BE(this.#take(4));
  }

  uint32(): number {
    return this.#payload.readUInt32BE(this.#take(4));
  }

  /** Aliases the payload. */
  bytes(count: number): Buffer {
    const at = this.#take(count);
    return this.#payload.subarray(at, at + count);
  }

  /** Whether the next string ends within the payload. */
  get hasCstring(): boolean {
    return this.#payload.includes(0, this.#offset);
  }

  cstring(): string {
    const end = this.#payload.indexOf(0, this.#offset);
    if (end === -1) throw this.#malformed();
    const text = decodeText(this.#payload.subarray(this.#offset, end));
    this.#offset = end + 1;
    return text;
  }

  #take(count: number): number {
    if (count < 0 || count > this.remaining) throw this.#malformed();
    const at = this.#offset;
    this.#offset += count;
    return at;
  }

  #malformed(): UnderstudyError {
    return new UnderstudyError('protocol-violation', `malformed ${this.#what}`);
  }
}

/**
 * Payload of an ErrorResponse or NoticeResponse, or, with `cut`, as much of its beginning as there is: severity and
 * SQLSTATE come first. Unknown fields are skipped. Throws `protocol-violation`.
 */
export function parseErrorFields(payload: Buffer, cut = false): ParsedError {
  const reader = new PayloadReader(payload, 'ErrorResponse');
  const fields = new Map<string, string>();
  for (let code = reader.byte(); code !== 0; code = reader.byte()) {
    if (cut && !reader.hasCstring) break;
    fields.set(String.fromCharCode(code), reader.cstring());
    if (cut && reader.remaining === 0) break;
  }
  const detail = fields.get('D');
  const hint = fields.get('H');
  return {
    severity: fields.get('V') ?? fields.get('S') ?? 'ERROR',
    sqlState: fields.get('C') ?? 'XX000',
    message: fields.get('M') ?? '',
    ...(detail === undefined ? {} : { detail }),
    ...(hint === undefined ? {} : { hint }),
  };
}

/** Payload of a DataRow whose columns are in text format. Throws `protocol-violation`. */
export function parseDataRow(payload: Buffer): (string | null)[] {
  const reader = new PayloadReader(payload, 'DataRow');
  const count = reader.int16();
  const row: (string | null)[] = [];
  for (let index = 0; index < count; index++) {
    const length = reader.int32();
    row.push(length === -1 ? null : reader.bytes(length).toString('utf8'));
  }
  if (count < 0 || reader.remaining !== 0)
    throw new UnderstudyError('protocol-violation', 'malformed DataRow');
  return row;
}

/** Payload of a ParameterStatus. Throws `protocol-violation`. */
export function parseParameterStatus(payload: Buffer): { readonly name: string; readonly value: string } {
  const reader = new PayloadReader(payload, 'ParameterStatus');
  return { name: reader.cstring(), value: reader.cstring() };
}

/** Payload of a BackendKeyData; `secret` aliases it. Throws `protocol-violation`. */
export function parseBackendKeyData(payload: Buffer): { readonly pid: number; readonly secret: Buffer } {
  const reader = new PayloadReader(payload, 'BackendKeyData');
  const pid = reader.uint32();
  return { pid, secret: reader.bytes(reader.remaining) };
}
