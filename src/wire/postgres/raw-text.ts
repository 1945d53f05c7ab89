/**
 * Messages whose texts travel byte for byte, in whatever encoding the client chose.
 *
 * What a session holds (setting values, statement texts, channel names) is read from one backend and given to another
 * that has the same client_encoding. Neither decodes it: a `raw` string holds one byte per character (latin1).
 */
import { FRONTEND, PayloadReader, encodeFrame } from './messages.js';
import { UnderstudyError } from '../../core/errors.js';

function cstring(raw: string): Buffer {
  return Buffer.from(`${raw}\0`, 'latin1');
}

export function encodeRawQuery(sql: string): Buffer {
  return encodeFrame(FRONTEND.query, cstring(sql));
}

export function encodeRawParse(name: string, sql: string, oids: readonly number[]): Buffer {
  const types = Buffer.allocUnsafe(2 + 4 * oids.length);
  types.writeUInt16BE(oids.length, 0);
  for (const [index, oid] of oids.entries()) types.writeUInt32BE(oid, 2 + 4 * index);
  return encodeFrame(FRONTEND.parse, Buffer.concat([cstring(name), cstring(sql), types]));
}

/** Bind of the unnamed portal to the unnamed statement, all parameters and results as text. */
export function encodeRawBind(values: readonly string[]): Buffer {
  const parts: Buffer[] = [Buffer.from([0, 0, 0, 0])];
  const count = Buffer.allocUnsafe(2);
  count.writeUInt16BE(values.length, 0);
  parts.push(count);
  for (const value of values) {
    const length = Buffer.allocUnsafe(4);
    length.writeInt32BE(value.length, 0);
    parts.push(length, Buffer.from(value, 'latin1'));
  }
  parts.push(Buffer.from([0, 0]));
  return encodeFrame(FRONTEND.bind, Buffer.concat(parts));
}

/** Execute of the unnamed portal to its end. */
export function encodeExecuteAll(): Buffer {
  return encodeFrame(FRONTEND.execute, Buffer.from([0, 0, 0, 0, 0]));
}

/** Close of a prepared statement. */
export function encodeRawClose(name: string): Buffer {
  return encodeFrame(FRONTEND.close, Buffer.concat([Buffer.from('S', 'latin1'), cstring(name)]));
}

/** Payload of a DataRow of text columns, undecoded. Throws `protocol-violation`. */
export function parseRawRow(payload: Buffer): (string | null)[] {
  const reader = new PayloadReader(payload, 'DataRow');
  const count = reader.int16();
  const row: (string | null)[] = [];
  for (let index = 0; index < count; index++) {
    const length = reader.int32();
    row.push(length === -1 ? null : reader.bytes(length).toString('latin1'));
  }
  if (count < 0 || reader.remaining !== 0) {
    throw new UnderstudyError('protocol-violation', 'malformed DataRow');
  }
  return row;
}
