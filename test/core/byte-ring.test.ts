import { randomBytes } from 'node:crypto';
import { Worker } from 'node:worker_threads';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ByteRingReader, ByteRingWriter, createByteRing } from '../../src/core/byte-ring.js';

function readAll(reader: ByteRingReader, most = Infinity): Buffer[] {
  const payloads: Buffer[] = [];
  reader.read(most, (offset, length) =>
    payloads.push(Buffer.from(reader.bytes.subarray(offset, offset + length))),
  );
  return payloads;
}

function same(read: readonly Buffer[], written: readonly Buffer[]): void {
  expect(Buffer.concat(read).equals(Buffer.concat(written))).toBe(true);
  expect(read.map((payload) => payload.length)).toEqual(written.map((payload) => payload.length));
}

/** Moves both positions, as if so many bytes had passed through. A multiple of 8. */
function startAt(memory: SharedArrayBuffer, position: number): void {
  new Int32Array(memory, 0, 2).fill(position);
}

describe('byte ring', () => {
  test('its memory is a power of two, whatever is asked for', () => {
    expect(new ByteRingWriter(createByteRing(1)).bytes.length).toBe(1024);
    expect(new ByteRingWriter(createByteRing(5000)).bytes.length).toBe(8192);
  });

  test('records come out as they went in, in order', () => {
    const memory = createByteRing(1024);
    const writer = new ByteRingWriter(memory);
    const reader = new ByteRingReader(memory);
    const payloads = [Buffer.from('first'), Buffer.alloc(0), randomBytes(200), Buffer.from([0])];
    for (const payload of payloads) expect(writer.offer(payload)).toBe(true);
    expect(readAll(reader)).toEqual(payloads);
    expect(readAll(reader)).toEqual([]);
  });

  test('a full ring refuses, counts the drop and loses nothing that it took', () => {
    const memory = createByteRing(1024);
    const writer = new ByteRingWriter(memory);
    const reader = new ByteRingReader(memory);
    let taken = 0;
    while (writer.offer(Buffer.alloc(56, taken))) taken += 1;
    expect(taken).toBe(16);
    expect(writer.offer(Buffer.alloc(0))).toBe(false);
    expect([writer.offered, writer.dropped]).toEqual([18, 2]);
    expect(readAll(reader, 1)).toEqual([Buffer.alloc(56, 0)]);
    expect(writer.offer(Buffer.alloc(56, 16))).toBe(true);
    expect(readAll(reader).map((payload) => payload[0])).toEqual(Array.from({ length: 16 }, (_, n) => n + 1));
  });

  test('a record that could never fit is dropped, and the ring stays usable', () => {
    const memory = createByteRing(1024);
    const writer = new ByteRingWriter(memory);
    expect(writer.offer(Buffer.alloc(writer.payloadBytesMax + 1))).toBe(false);
    for (let n = 0; n < 50; n += 1) {
      expect(writer.offer(Buffer.alloc(writer.payloadBytesMax, n))).toBe(true);
      const read = readAll(new ByteRingReader(memory));
      expect(read.map((payload) => payload.equals(Buffer.alloc(writer.payloadBytesMax, n)))).toEqual([true]);
    }
  });

  test('what was reserved is seen only when it is committed', () => {
    const memory = createByteRing(1024);
    const writer = new ByteRingWriter(memory);
    const reader = new ByteRingReader(memory);
    const offset = writer.reserve(8);
    expect(offset % 8).toBe(0);
    writer.floats[offset / 8] = 42;
    expect(readAll(reader)).toEqual([]);
    writer.commit();
    const seen: number[] = [];
    reader.read(10, (at) => seen.push(reader.floats[at / 8] ?? 0));
    expect(seen).toEqual([42]);
  });

  test('a reader that throws loses that record and no other', () => {
    const memory = createByteRing(1024);
    const writer = new ByteRingWriter(memory);
    const reader = new ByteRingReader(memory);
    for (const text of ['a', 'b', 'c']) writer.offer(Buffer.from(text));
    expect(() =>
      reader.read(10, () => {
        throw new Error('no');
      }),
    ).toThrow('no');
    expect(readAll(reader).map(String)).toEqual(['b', 'c']);
  });

  test('a new reader goes on where the one before had come to', () => {
    const memory = createByteRing(1024);
    const writer = new ByteRingWriter(memory);
    for (const text of ['a', 'b']) writer.offer(Buffer.from(text));
    readAll(new ByteRingReader(memory), 1);
    expect(readAll(new ByteRingReader(memory)).map(String)).toEqual(['b']);
  });

  test('whatever is offered and read, it behaves as a list, also where its 32-bit positions wrap', () => {
    const step = fc.oneof(
      fc.record({ offer: fc.integer({ min: 0, max: 600 }) }),
      fc.record({ read: fc.integer({ min: 1, max: 20 }) }),
    );
    const start = fc.constantFrom(0, -2048, -8, 2 ** 31 - 4096, 2 ** 31 - 8, 1016);
    fc.assert(
      fc.property(start, fc.array(step, { maxLength: 300 }), (position, steps) => {
        const memory = createByteRing(1024);
        startAt(memory, position);
        const writer = new ByteRingWriter(memory);
        const reader = new ByteRingReader(memory);
        const model: Buffer[] = [];
        let refused = 0;
        for (const [index, action] of steps.entries()) {
          if ('offer' in action) {
            const payload = Buffer.alloc(action.offer, index);
            if (writer.offer(payload)) model.push(payload);
            else refused += 1;
          } else same(readAll(reader, action.read), model.splice(0, action.read));
        }
        same(readAll(reader), model);
        expect(writer.dropped).toBe(refused);
      }),
      { numRuns: 100 },
    );
  });

  test('between two threads nothing is lost, torn or reordered', async () => {
    const memory = createByteRing(16_384);
    const writer = new ByteRingWriter(memory);
    const records = 100_000;
    const worker = new Worker(
      `const { workerData, parentPort } = require('node:worker_threads');
       import(workerData.module).then(({ ByteRingReader }) => {
         const reader = new ByteRingReader(workerData.memory);
         let expected = 0;
         let wrong = 0;
         while (expected < workerData.records) {
           const seen = reader.signal();
           const read = reader.read(1000, (offset, length) => {
             if (reader.floats[offset / 8] !== expected) wrong += 1;
             if (length !== 8 + (expected * 7919) % 300) wrong += 1;
             for (let at = offset + 8; at < offset + length; at += 1) {
               if (reader.bytes[at] !== expected % 256) wrong += 1;
             }
             expected += 1;
           });
           if (read === 0) reader.wait(seen, 5);
         }
         parentPort.postMessage({ expected, wrong });
       });`,
      {
        eval: true,
        workerData: {
          memory,
          records,
          module: new URL('../../dist/core/byte-ring.js', import.meta.url).href,
        },
      },
    );
    try {
      const answer = new Promise((resolve, reject) => {
        worker.once('message', resolve);
        worker.once('error', reject);
      });
      for (let n = 0; n < records;) {
        const length = 8 + ((n * 7919) % 300);
        const offset = writer.reserve(length);
        if (offset === -1) {
          // Full: the reader is asked to hurry, and this thread must not spin it off its core.
          writer.wake();
          await new Promise((resolve) => setImmediate(resolve));
          continue;
        }
        writer.floats[offset / 8] = n;
        writer.bytes.fill(n % 256, offset + 8, offset + length);
        writer.commit();
        n += 1;
      }
      writer.wake();
      expect(await answer).toEqual({ expected: records, wrong: 0 });
    } finally {
      await worker.terminate();
    }
  });
});
