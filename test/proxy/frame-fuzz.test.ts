/**
 * A million mutated frames through the streams of a session. Whatever they are: bytes forwarded are the bytes of the
 * frames accepted, in their order; what is refused is a violation by name; nothing grows.
 *
 * UNDERSTUDY_FUZZ_SEED repeats a run or makes another; UNDERSTUDY_FUZZ multiplies its length.
 */
import { expect, test } from 'vitest';
import { UnderstudyError } from '../../src/core/errors.js';
import { BinaryTypes, SessionBinaryTypes } from '../../src/proxy/session/binary-types.js';
import { ClientStream } from '../../src/proxy/session/client-stream.js';
import { OwnExchanges } from '../../src/proxy/session/own-exchanges.js';
import { ResponseTracker } from '../../src/proxy/session/response-tracker.js';
import { ServerStream } from '../../src/proxy/session/server-stream.js';
import { StatementLog } from '../../src/proxy/session/statement-log.js';
import { StatementText } from '../../src/wire/postgres/statement-text.js';
import { Chance, corpus, mutate, pieces } from '../support/mutate.js';

const FRAME_BYTES_MAX = 100_000;
const FRAMES_PER_STREAM = 250;
const STREAMS = 6000 * Number(process.env['UNDERSTUDY_FUZZ'] ?? 1);
const SEED = Number(process.env['UNDERSTUDY_FUZZ_SEED'] ?? 20_260_101);

/** The frames of a stream up to its first violation, by one buffer and one loop. */
interface Reading {
  /** Where the first frame begins that is refused, or whose header is not complete. */
  readonly end: number;
  readonly violation: boolean;
  readonly frames: number;
}

function read(bytes: Buffer): Reading {
  let at = 0;
  let frames = 0;
  while (bytes.length - at >= 5) {
    const length = bytes.readInt32BE(at + 1);
    if (length < 4 || length > FRAME_BYTES_MAX) return { end: at, violation: true, frames };
    at = Math.min(bytes.length, at + 1 + length);
    frames += 1;
  }
  return { end: at, violation: false, frames };
}

const text = new StatementText();
const forwarded: Buffer = Buffer.allocUnsafe(8 * 1024 * 1024);
let forwardedBytes = 0;
const forward = (bytes: Buffer): void => {
  forwardedBytes += bytes.copy(forwarded, forwardedBytes);
};

function makeStreams(): { readonly client: ClientStream; readonly server: ServerStream } {
  const tracker = new ResponseTracker();
  const log = new StatementLog(null, 1, 4096, () => 0);
  const types = new SessionBinaryTypes(new BinaryTypes(), 'source');
  return {
    client: new ClientStream({ tracker, log, text, types, frameBytesMax: FRAME_BYTES_MAX, forward }),
    server: new ServerStream({
      tracker,
      log,
      own: new OwnExchanges(65_536),
      frameBytesMax: FRAME_BYTES_MAX,
      replyBytesMax: 65_536,
      oids: null,
      types,
      forward,
      onParameter: () => undefined,
      onError: () => undefined,
    }),
  };
}

function walkAll(walk: (chunk: Buffer) => number, bytes: Buffer, chance: Chance): unknown {
  try {
    if (chance.once(2)) {
      walk(Buffer.from(bytes));
      return null;
    }
    for (const piece of pieces(bytes, chance, chance.pick([3, 30, 700]))) walk(piece);
    return null;
  } catch (error) {
    return error;
  }
}

test.each(['frontend', 'backend'] as const)('%s', (which) => {
  const seeds = corpus(which);
  const chance = new Chance(SEED);
  let frames = 0;
  let violations = 0;
  const before = process.memoryUsage();
  for (let stream = 0; stream < STREAMS / 2 || frames < 500_000; stream++) {
    const lies = chance.once(3);
    const parts: Buffer[] = [];
    for (let index = 0; index < FRAMES_PER_STREAM; index++) {
      const mutated = lies ? chance.once(40) : chance.once(2);
      parts.push(mutated ? mutate(chance.pick(seeds), chance, lies) : chance.pick(seeds));
    }
    const bytes = Buffer.concat(parts);
    const expected = read(bytes);
    frames += expected.frames;
    const { client, server } = makeStreams();
    const { walker } = which === 'frontend' ? client : server;
    forwardedBytes = 0;
    const error = walkAll((chunk) => walker.walk(chunk), bytes, chance);
    const at = `stream ${stream} of seed ${SEED}`;
    if (error !== null) {
      violations += 1;
      if (!(error instanceof UnderstudyError) || error.code === 'internal') throw error;
    }
    // A payload may be refused, too; then the frame it is in may have been forwarded already, or not.
    if (expected.violation && error === null) throw new Error(`a violation passed in ${at}`);
    const sent = forwarded.subarray(0, forwardedBytes);
    if (!sent.equals(bytes.subarray(0, sent.length))) throw new Error(`other bytes were forwarded in ${at}`);
    if (sent.length > expected.end) throw new Error(`a refused frame was forwarded in ${at}`);
    if (error === null && sent.length !== expected.end) throw new Error(`bytes were kept back in ${at}`);
  }
  expect(frames).toBeGreaterThanOrEqual(500_000);
  expect(violations).toBeGreaterThan(100);
  const grown = process.memoryUsage().arrayBuffers - before.arrayBuffers;
  expect(grown).toBeLessThan(100 * 1024 * 1024);
});

test('a message that declares a gigabyte costs no more than what is looked at of it', () => {
  const { client, server } = makeStreams();
  for (const [walker, type] of [
    [client.walker, 'Q'],
    [client.walker, 'P'],
    [server.walker, 'E'],
  ] as const) {
    const header = Buffer.alloc(5 + 1000);
    header.write(type, 0, 'latin1');
    header.writeUInt32BE(FRAME_BYTES_MAX, 1);
    const before = process.memoryUsage().arrayBuffers;
    forwardedBytes = 0;
    walker.walk(header);
    for (let left = FRAME_BYTES_MAX - 4 - 1000; left > 0; left -= 1000) {
      walker.walk(Buffer.alloc(Math.min(1000, left), 0x20));
      expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(2_000_000);
    }
  }
});
