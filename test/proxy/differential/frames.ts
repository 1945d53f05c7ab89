/** Frontend messages with all their fields; independent of the encoders under test. */
import { frame } from '../proxy-support.js';

function int16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

export function int32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32BE(value);
  return bytes;
}

export function int64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigInt64BE(value);
  return bytes;
}

export type Value = string | Buffer | null;

function values(all: readonly Value[]): Buffer {
  return Buffer.concat([
    int16(all.length),
    ...all.map((value) => {
      if (value === null) return int32(-1);
      const bytes = Buffer.from(value);
      return Buffer.concat([int32(bytes.length), bytes]);
    }),
  ]);
}

function formats(all: readonly number[]): Buffer {
  return Buffer.concat([int16(all.length), ...all.map(int16)]);
}

export const query = (sql: string): Buffer => frame('Q', `${sql}\0`);

export const parse = (sql: string, name = '', oids: readonly number[] = []): Buffer =>
  frame('P', `${name}\0${sql}\0`, int16(oids.length), ...oids.map(int32));

export interface BindFields {
  readonly portal?: string;
  readonly statement?: string;
  readonly values?: readonly Value[];
  /** 0 text, 1 binary: none, one for all, or one for each. */
  readonly formats?: readonly number[];
  readonly results?: readonly number[];
}

export const bind = (fields: BindFields = {}): Buffer =>
  frame(
    'B',
    `${fields.portal ?? ''}\0${fields.statement ?? ''}\0`,
    formats(fields.formats ?? []),
    values(fields.values ?? []),
    formats(fields.results ?? []),
  );

export const describeStatement = (name = ''): Buffer => frame('D', `S${name}\0`);
export const describePortal = (name = ''): Buffer => frame('D', `P${name}\0`);
export const execute = (portal = '', rows = 0): Buffer => frame('E', `${portal}\0`, int32(rows));
export const closeStatement = (name = ''): Buffer => frame('C', `S${name}\0`);
export const closePortal = (name = ''): Buffer => frame('C', `P${name}\0`);
export const sync = frame('S');
export const flush = frame('H');
export const terminate = frame('X');
export const copyData = (data: string | Buffer): Buffer => frame('d', data);
export const copyDone = frame('c');
export const copyFail = (why: string): Buffer => frame('f', `${why}\0`);

export const functionCall = (
  oid: number,
  args: readonly Value[],
  argFormats: readonly number[] = [],
  result = 0,
): Buffer => frame('F', int32(oid), formats(argFormats), values(args), int16(result));

/** Parse, Bind and Execute by the unnamed statement and portal. */
export const run = (sql: string, fields: BindFields = {}): Buffer =>
  Buffer.concat([parse(sql), bind(fields), execute()]);

/** What most drivers send for one statement. */
export const ask = (sql: string, fields: BindFields = {}): Buffer =>
  Buffer.concat([parse(sql), describeStatement(), bind(fields), describePortal(), execute(), sync]);
