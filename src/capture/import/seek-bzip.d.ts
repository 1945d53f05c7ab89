/** The part of seek-bzip that is used: its decoder, one block at a time. */
declare module 'seek-bzip' {
  class Stream {
    readByte(): number;
    read(buffer: Uint8Array, offset: number, length: number): number;
    writeByte(byte: number): void;
  }
  class Bunzip {
    static readonly Stream: typeof Stream;
    constructor(input: Stream, output: Stream);
    readonly reader: { read(bits: number): number };
    /** Reads a block; false at the end of the stream. */
    _init_block(): boolean;
    /** Writes the block that was read. */
    _read_bunzip(): number;
  }
  export = Bunzip;
}
