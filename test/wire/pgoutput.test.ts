import fc from 'fast-check';
import { expect, test } from 'vitest';
import { UnderstudyError } from '../../src/core/errors.js';
import { decodePgOutput, type PgOutputMessage, type TupleValue } from '../../src/wire/postgres/pgoutput.js';
import { readReplicationFrame, writeStandbyStatus } from '../../src/wire/postgres/replication.js';

// An encoder of its own, written from the protocol's documentation.
const u8 = (value: number): Buffer => Buffer.from([value]);
const i16 = (value: number): Buffer => Buffer.from([(value >> 8) & 255, value & 255]);
const u32 = (value: number): Buffer =>
  Buffer.from([(value >>> 24) & 255, (value >>> 16) & 255, (value >>> 8) & 255, value & 255]);
const u64 = (value: bigint): Buffer =>
  Buffer.concat([u32(Number((value >> 32n) & 0xffffffffn)), u32(Number(value & 0xffffffffn))]);
const cstring = (text: string): Buffer => Buffer.concat([Buffer.from(text, 'utf8'), u8(0)]);
const letter = (text: string): Buffer => Buffer.from(text, 'latin1');

function tuple(row: readonly TupleValue[]): Buffer {
  const columns = row.map((value) => {
    if (value === null) return letter('n');
    if (value === undefined) return letter('u');
    const bytes = typeof value === 'string' ? Buffer.from(value, 'utf8') : value;
    return Buffer.concat([letter('t'), u32(bytes.length), bytes]);
  });
  return Buffer.concat([i16(row.length), ...columns]);
}

function old(value: { readonly kind: 'key' | 'full'; readonly row: readonly TupleValue[] }): Buffer {
  return Buffer.concat([letter(value.kind === 'key' ? 'K' : 'O'), tuple(value.row)]);
}

function encode(message: PgOutputMessage): Buffer {
  switch (message.kind) {
    case 'begin':
      return Buffer.concat([
        letter('B'),
        u64(message.commitLsn),
        u64(message.commitMicros),
        u32(message.xid),
      ]);
    case 'commit':
      return Buffer.concat([
        letter('C'),
        u8(0),
        u64(message.commitLsn),
        u64(message.endLsn),
        u64(message.commitMicros),
      ]);
    case 'origin':
      return Buffer.concat([letter('O'), u64(message.commitLsn), cstring(message.name)]);
    case 'relation':
      return Buffer.concat([
        letter('R'),
        u32(message.id),
        cstring(message.schema),
        cstring(message.name),
        letter(message.replicaIdentity),
        i16(message.columns.length),
        ...message.columns.map((column) =>
          Buffer.concat([
            u8(column.identity ? 1 : 0),
            cstring(column.name),
            u32(column.typeOid),
            u32(column.typeModifier),
          ]),
        ),
      ]);
    case 'type':
      return Buffer.concat([letter('Y'), u32(message.oid), cstring(message.schema), cstring(message.name)]);
    case 'insert':
      return Buffer.concat([letter('I'), u32(message.relationId), letter('N'), tuple(message.row)]);
    case 'update':
      return Buffer.concat([
        letter('U'),
        u32(message.relationId),
        ...(message.old === null ? [] : [old(message.old)]),
        letter('N'),
        tuple(message.row),
      ]);
    case 'delete':
      return Buffer.concat([letter('D'), u32(message.relationId), old(message.old)]);
    case 'truncate':
      return Buffer.concat([
        letter('T'),
        u32(message.relationIds.length),
        u8((message.cascade ? 1 : 0) + (message.restartIdentity ? 2 : 0)),
        ...message.relationIds.map(u32),
      ]);
    case 'message':
      return Buffer.concat([
        letter('M'),
        u8(message.transactional ? 1 : 0),
        u64(message.lsn),
        cstring(message.prefix),
        u32(Buffer.byteLength(message.content)),
        Buffer.from(message.content, 'utf8'),
      ]);
  }
}

const name = fc.string({ unit: 'grapheme', maxLength: 12 }).filter((text) => !text.includes('\0'));
const lsn = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n });
const micros = fc.bigInt({ min: 0n, max: (1n << 62n) - 1n });
const id = fc.integer({ min: 0, max: 0xffffffff });
const value = fc.oneof(fc.string({ unit: 'grapheme' }), fc.constant(null), fc.constant(undefined));
const row = fc.array(value, { maxLength: 6 });
const oldTuple = fc.record({ kind: fc.constantFrom('key' as const, 'full' as const), row });

const messages: fc.Arbitrary<PgOutputMessage> = fc.oneof(
  fc.record({ kind: fc.constant('begin' as const), commitLsn: lsn, commitMicros: micros, xid: id }),
  fc.record({ kind: fc.constant('commit' as const), commitLsn: lsn, endLsn: lsn, commitMicros: micros }),
  fc.record({ kind: fc.constant('origin' as const), commitLsn: lsn, name }),
  fc.record({
    kind: fc.constant('relation' as const),
    id,
    schema: name.filter((text) => text !== ''),
    name,
    replicaIdentity: fc.constantFrom('d', 'n', 'f', 'i'),
    columns: fc.array(
      fc.record({ name, identity: fc.boolean(), typeOid: id, typeModifier: fc.constantFrom(-1, 0, 20) }),
      { maxLength: 5 },
    ),
  }),
  fc.record({
    kind: fc.constant('type' as const),
    oid: id,
    schema: name.filter((text) => text !== ''),
    name,
  }),
  fc.record({ kind: fc.constant('insert' as const), relationId: id, row }),
  fc.record({ kind: fc.constant('update' as const), relationId: id, old: fc.option(oldTuple), row }),
  fc.record({ kind: fc.constant('delete' as const), relationId: id, old: oldTuple }),
  fc.record({
    kind: fc.constant('truncate' as const),
    relationIds: fc.array(id, { maxLength: 4 }),
    cascade: fc.boolean(),
    restartIdentity: fc.boolean(),
  }),
  fc.record({
    kind: fc.constant('message' as const),
    transactional: fc.boolean(),
    lsn,
    prefix: name,
    content: fc.string({ unit: 'grapheme' }),
  }),
);

test('every message is read back as it was written', () => {
  fc.assert(
    fc.property(messages, (message) => {
      expect(decodePgOutput(encode(message))).toEqual(message);
    }),
  );
});

test('a value beyond the bound stays bytes, in the memory it came in', () => {
  const texts = ['short', 'x'.repeat(20), 'é'.repeat(11), null, undefined];
  const bytes = encode({ kind: 'insert', relationId: 1, row: texts });
  const decoded = decodePgOutput(bytes, 0, bytes.length, 20);
  const [short, full, large, ...rest] = decoded.kind === 'insert' ? decoded.row : [];
  expect([short, full, ...rest]).toEqual(['short', 'x'.repeat(20), null, undefined]);
  expect(large).toEqual(Buffer.from('é'.repeat(11)));
  expect(large instanceof Buffer && large.buffer === bytes.buffer).toBe(true);
});

test('a binary value is refused: nobody asks for one', () => {
  expectRefused(Buffer.concat([letter('I'), u32(1), letter('N'), i16(1), letter('b'), u32(1), u8(1)]));
});

test('nothing that was decoded changes when its memory is used again', () => {
  fc.assert(
    fc.property(messages, (message) => {
      const bytes = encode(message);
      const decoded = decodePgOutput(bytes);
      bytes.fill(0x58);
      expect(decoded).toEqual(message);
    }),
  );
});

test('a message cut anywhere, or followed by more, is refused and nothing else', () => {
  fc.assert(
    fc.property(messages, (message) => {
      const bytes = encode(message);
      for (let length = 0; length < bytes.length; length++) {
        expectRefused(bytes.subarray(0, length));
      }
      expectRefused(Buffer.concat([bytes, u8(0)]));
    }),
    { numRuns: 50 },
  );
});

test('arbitrary bytes are decoded or refused, never worse', () => {
  fc.assert(
    fc.property(
      fc.constantFrom(...'BCORYIUDTMX'.split('')),
      fc.uint8Array({ maxLength: 60 }),
      (type, bytes) => {
        try {
          decodePgOutput(Buffer.concat([letter(type), bytes]));
        } catch (error) {
          expect(error).toBeInstanceOf(UnderstudyError);
        }
      },
    ),
  );
});

function expectRefused(bytes: Buffer): void {
  try {
    decodePgOutput(bytes);
  } catch (error) {
    expect(error).toMatchObject({ code: 'protocol-violation' });
    return;
  }
  throw new Error(`accepted ${bytes.toString('hex')}`);
}

test('replication frames are split from their headers', () => {
  const data = Buffer.concat([letter('w'), u64(1n), u64(2n), u64(3n), letter('B...')]);
  expect(readReplicationFrame(data)).toEqual({ kind: 'data', data: letter('B...') });
  const keepalive = Buffer.concat([letter('k'), u64(0x1_0000_0002n), u64(3n), u8(1)]);
  expect(readReplicationFrame(keepalive)).toEqual({
    kind: 'keepalive',
    walEnd: 0x1_0000_0002n,
    replyRequested: true,
  });
  for (const frame of [Buffer.alloc(0), letter('w'), keepalive.subarray(1), letter('x')]) {
    expect(() => readReplicationFrame(frame)).toThrow(UnderstudyError);
  }
});

test('the status tells what arrived and what is durable', () => {
  const status = writeStandbyStatus({
    received: 0x2_0000_0001n,
    flushed: 7n,
    at: new Date('2000-01-01T00:00:01Z'),
  });
  expect(status).toEqual(
    Buffer.concat([letter('r'), u64(0x2_0000_0001n), u64(7n), u64(7n), u64(1_000_000n), u8(0)]),
  );
});
