/**
 * Compressed logs, told by their first bytes: gzip (zlib), bzip2 and xz (libraries). All are read as streams: memory is
 * bounded by the formats' own windows (xz at most what its dictionary asks for, 64 MB at `-9`), never by the file.
 */
import { createGunzip } from 'node:zlib';
import { Readable } from 'node:stream';
import { ReadableStream } from 'node:stream/web';
import { asUnderstudyError } from '../../core/errors.js';
import { bunzip2 } from './bzip2.js';

export type Compression = 'none' | 'gzip' | 'bzip2' | 'xz';

const MAGIC: readonly (readonly [Compression, readonly number[]])[] = [
  ['gzip', [0x1f, 0x8b]],
  ['bzip2', [0x42, 0x5a, 0x68]],
  ['xz', [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]],
];
const MAGIC_BYTES_MAX = 6;

export function compressionOf(head: Uint8Array): Compression {
  const found = MAGIC.find(([, magic]) => magic.every((byte, at) => head[at] === byte));
  return found?.[0] ?? 'none';
}

/** The plain bytes. Throws `log-unreadable` where the data is damaged; what came before it was handed over. */
export async function* decompressed(input: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  const pieces = input[Symbol.asyncIterator]();
  let head = Buffer.alloc(0);
  while (head.length < MAGIC_BYTES_MAX) {
    const { value, done } = await pieces.next();
    if (done === true) break;
    head = Buffer.concat([head, value]);
  }
  const whole = (async function* () {
    try {
      if (head.length > 0) yield head;
      yield* { [Symbol.asyncIterator]: () => pieces };
    } finally {
      await pieces.return?.();
    }
  })();
  const compression = compressionOf(head);
  try {
    yield* plain(whole, compression);
  } catch (error) {
    throw asUnderstudyError(error, 'log-unreadable', `damaged ${compression} data`);
  }
}

async function* plain(input: AsyncGenerator<Buffer>, compression: Compression): AsyncGenerator<Buffer> {
  switch (compression) {
    case 'none':
      yield* input;
      return;
    case 'gzip':
      // As `gunzip` does, members behind one another are one stream.
      yield* Readable.from(input).compose(createGunzip()) as AsyncIterable<Buffer>;
      return;
    case 'bzip2':
      yield* bunzip2(input);
      return;
    case 'xz': {
      // Node finds the names of this CommonJS module under `default` alone; others, among them test runners, beside it.
      const found = await import('xz-decompress');
      const { XzReadableStream } = found.XzReadableStream === undefined ? found.default : found;
      const compressed = ReadableStream.from(input) as unknown as globalThis.ReadableStream<Uint8Array>;
      const stream = new XzReadableStream(compressed) as unknown as ReadableStream<Uint8Array>;
      for await (const piece of stream)
        // The library may reuse its memory once the next piece is asked for.
        yield Buffer.from(piece);
      return;
    }
  }
}
