/**
 * bzip2 as a stream: the library decodes one block after another from what was read so far.
 *
 * Memory: 2 MB of input looked ahead, a block of 0.9 MB (3.6 MB as the library holds it), and what it expands to,
 * at most 46 MB for data made to do so. A block's compressed form is at most about one percent longer than its
 * plain one, so that a block never asks for input that is not here yet.
 */
import Bunzip from 'seek-bzip';

const LOOK_AHEAD_BYTES = 2 << 20;
/** The magic number and level in front of a stream. */
const HEAD_BYTES = 4;

/** Also several streams behind one another, as parallel compressors write them. Throws where data is damaged. */
export async function* bunzip2(input: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  const source = new LookAhead(input);
  await source.fill();
  while (!source.atEnd) {
    const output = new BlockOutput();
    const decoder = new Bunzip(source, output);
    while (decoder._init_block()) {
      decoder._read_bunzip();
      yield output.take();
      await source.fill();
    }
    // The checksum of the whole stream; each block's own was compared already.
    decoder.reader.read(32);
    await source.fill();
    // Some tools pad a file with zeros.
    if (source.left < HEAD_BYTES || source.zerosOnly()) return;
  }
}

class LookAhead extends Bunzip.Stream {
  readonly #pieces: AsyncIterator<Buffer>;
  #bytes: Buffer = Buffer.alloc(0);
  #at = 0;
  #ended = false;

  constructor(input: AsyncIterable<Buffer>) {
    super();
    this.#pieces = input[Symbol.asyncIterator]();
  }

  async fill(): Promise<void> {
    if (this.left >= LOOK_AHEAD_BYTES / 2 || this.#ended) return;
    const kept = [this.#bytes.subarray(this.#at)];
    let bytes = this.left;
    while (bytes < LOOK_AHEAD_BYTES) {
      const { value, done } = await this.#pieces.next();
      if (done === true) {
        this.#ended = true;
        break;
      }
      kept.push(value);
      bytes += value.length;
    }
    this.#bytes = Buffer.concat(kept);
    this.#at = 0;
  }

  get left(): number {
    return this.#bytes.length - this.#at;
  }

  get atEnd(): boolean {
    return this.#ended && this.left === 0;
  }

  zerosOnly(): boolean {
    return this.#bytes.subarray(this.#at).every((byte) => byte === 0);
  }

  override readByte(): number {
    const byte = this.#bytes[this.#at];
    if (byte === undefined) throw new RangeError('the file ends in the middle of a block');
    this.#at += 1;
    return byte;
  }
}

class BlockOutput extends Bunzip.Stream {
  #bytes = Buffer.allocUnsafe(1 << 20);
  #length = 0;

  override writeByte(byte: number): void {
    if (this.#length === this.#bytes.length) {
      const larger = Buffer.allocUnsafe(this.#bytes.length * 2);
      this.#bytes.copy(larger);
      this.#bytes = larger;
    }
    this.#bytes[this.#length] = byte;
    this.#length += 1;
  }

  take(): Buffer {
    const taken = Buffer.from(this.#bytes.subarray(0, this.#length));
    this.#length = 0;
    return taken;
  }
}
