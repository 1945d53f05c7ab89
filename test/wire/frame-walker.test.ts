import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  DROP,
  FrameWalker,
  PASS,
  PEEK,
  PEEK_HEAD,
  STOP,
  actionTable,
  type FrameVisitor,
} from '../../src/wire/postgres/frame-walker.js';

interface Sent {
  readonly type: number;
  readonly payload: Buffer;
}

/** Independent of the walker: one buffer, one loop. */
function bytesOf(frames: readonly Sent[]): Buffer {
  return Buffer.concat(
    frames.flatMap(({ type, payload }) => {
      const header = Buffer.alloc(5);
      header[0] = type;
      header.writeUInt32BE(payload.length + 4, 1);
      return [header, payload];
    }),
  );
}

class Recorder implements FrameVisitor {
  readonly begun: string[] = [];
  readonly peeked: { type: number; payload: Buffer; payloadBytes: number }[] = [];
  readonly forwarded: Buffer[] = [];
  readonly #decide: (type: number, index: number) => number;

  constructor(decide: (type: number, index: number) => number) {
    this.#decide = decide;
  }

  begin(type: number, payloadBytes: number): number {
    const action = this.#decide(type, this.begun.length);
    if ((action & STOP) === 0) this.begun.push(`${type}:${payloadBytes}`);
    return action;
  }

  peek(type: number, bytes: Buffer, start: number, end: number, payloadBytes: number): void {
    this.peeked.push({ type, payload: Buffer.from(bytes.subarray(start, end)), payloadBytes });
  }

  forward(bytes: Buffer): void {
    this.forwarded.push(Buffer.from(bytes));
  }

  get sent(): Buffer {
    return Buffer.concat(this.forwarded);
  }
}

const bounds = { frameBytesMax: 1_000_000, peekBytesMax: 1000 };

const frames = fc.array(
  fc.record({
    type: fc.constantFrom(0x51, 0x44, 0x5a, 0x43),
    payload: fc.uint8Array({ maxLength: 60 }).map((bytes) => Buffer.from(bytes)),
  }),
  { maxLength: 12 },
);

function cut(bytes: Buffer, points: readonly number[]): Buffer[] {
  const at = [...new Set(points.map((point) => point % (bytes.length + 1)))].toSorted((a, b) => a - b);
  return [0, ...at].map((from, index) => bytes.subarray(from, at[index] ?? bytes.length));
}

describe('whatever the chunks', () => {
  test('passes, drops and shows the same frames', () => {
    const actions = new Map([
      [0x51, PEEK],
      [0x44, PASS],
      [0x5a, DROP],
      [0x43, DROP | PEEK],
    ]);
    fc.assert(
      fc.property(
        frames,
        fc.array(fc.nat(2000), { maxLength: 30 }),
        fc.boolean(),
        (sent, points, asTable) => {
          const recorder = new Recorder((type) => actions.get(type) ?? PASS);
          const walker = new FrameWalker(recorder, bounds, ...(asTable ? [actionTable(PASS, actions)] : []));
          for (const chunk of cut(bytesOf(sent), points)) {
            expect(walker.walk(chunk)).toBe(chunk.length);
          }
          expect(recorder.sent).toEqual(bytesOf(sent.filter(({ type }) => type === 0x51 || type === 0x44)));
          expect(recorder.peeked).toEqual(
            sent
              .filter(({ type }) => type === 0x51 || type === 0x43)
              .map(({ type, payload }) => ({ type, payload, payloadBytes: payload.length })),
          );
          expect(walker.insideFrame || walker.partialHeaderBytes > 0).toBe(false);
        },
      ),
    );
  });

  test('stops in front of a frame, and goes on from there with nothing lost or doubled', () => {
    fc.assert(
      fc.property(frames, fc.array(fc.nat(2000), { maxLength: 30 }), fc.nat(12), (sent, points, stopAt) => {
        let stopped = false;
        const recorder = new Recorder((_type, index) => {
          if (index !== stopAt || stopped) return PASS;
          stopped = true;
          return STOP;
        });
        const walker = new FrameWalker(recorder, bounds);
        for (const chunk of cut(bytesOf(sent), points)) {
          const used = walker.walk(chunk);
          if (used === chunk.length) continue;
          expect(recorder.sent).toEqual(bytesOf(sent.slice(0, stopAt)));
          const rest = Buffer.concat([walker.takePartialHeader(), chunk.subarray(used)]);
          expect(walker.walk(rest)).toBe(rest.length);
        }
        expect(recorder.sent).toEqual(bytesOf(sent));
        expect(recorder.begun).toEqual(sent.map(({ type, payload }) => `${type}:${payload.length}`));
      }),
    );
  });
});

test('no byte of a header leaves before the header is complete', () => {
  const recorder = new Recorder(() => PASS);
  const walker = new FrameWalker(recorder, bounds);
  const bytes = bytesOf([{ type: 0x51, payload: Buffer.from('hello') }]);
  for (let at = 0; at < 4; at++) walker.walk(bytes.subarray(at, at + 1));
  expect(recorder.sent.length).toBe(0);
  expect(walker.partialHeaderBytes).toBe(4);
  walker.walk(bytes.subarray(4, 5));
  expect(recorder.sent.length).toBe(5);
  expect(walker.insideForwardedFrame).toBe(true);
});

test('a payload in pieces is shown up to the bound, one in a single piece whole', () => {
  const payload = Buffer.alloc(5000, 7);
  const bytes = bytesOf([{ type: 0x51, payload }]);
  const pieces = new Recorder(() => PEEK);
  const walker = new FrameWalker(pieces, bounds);
  walker.walk(bytes.subarray(0, 30));
  walker.walk(bytes.subarray(30));
  expect(pieces.peeked).toEqual([{ type: 0x51, payload: payload.subarray(0, 1000), payloadBytes: 5000 }]);
  const head = new Recorder(() => PEEK_HEAD);
  const headWalker = new FrameWalker(head, bounds);
  headWalker.walk(bytes.subarray(0, 30));
  headWalker.walk(bytes.subarray(30));
  expect(head.peeked[0]?.payload.length).toBeLessThan(1000);
  const whole = new Recorder(() => PEEK);
  new FrameWalker(whole, bounds).walk(bytes);
  expect(whole.peeked).toEqual([{ type: 0x51, payload, payloadBytes: 5000 }]);
});

test.each([0, 1, 2, 3, 0xffff_ffff, 0x8000_0000, 0x7fff_ffff, 1_000_001])(
  'a length of %d is refused, after what precedes it was passed, at every cut',
  (length) => {
    const good = bytesOf([{ type: 0x51, payload: Buffer.from('ok') }]);
    const bad = Buffer.alloc(5);
    bad[0] = 0x51;
    bad.writeUInt32BE(length, 1);
    const bytes = Buffer.concat([good, bad]);
    const code = length < 0x8000_0000 && length > 3 ? 'frame-too-large' : 'protocol-violation';
    for (let at = 0; at <= bytes.length; at++) {
      const recorder = new Recorder(() => PASS);
      const walker = new FrameWalker(recorder, bounds);
      const run = (): void => {
        walker.walk(bytes.subarray(0, at));
        walker.walk(bytes.subarray(at));
      };
      expect(run).toThrow(expect.objectContaining({ code }));
      expect(recorder.sent).toEqual(good);
    }
  },
);

test('counts positions in the stream', () => {
  const positions: number[] = [];
  const walker = new FrameWalker(
    { begin: () => (positions.push(walker.position), PASS), peek: () => undefined, forward: () => undefined },
    bounds,
  );
  const bytes = bytesOf([
    { type: 1, payload: Buffer.alloc(3) },
    { type: 2, payload: Buffer.alloc(0) },
    { type: 3, payload: Buffer.alloc(10) },
  ]);
  walker.walk(bytes.subarray(0, 10));
  walker.walk(bytes.subarray(10));
  expect(positions).toEqual([0, 8, 13]);
});
