/**
 * Which of the database's own types clients use in binary form.
 *
 * A value's binary form may carry OIDs: an array's that of its element, a composite's those of its columns. After a
 * switch these are the new side's, which a session that began on the other does not know (type-oids.ts maps what
 * describes values, never values). So a cutover's preflight names them beforehand.
 *
 * Which types a statement has is told by descriptions, which formats are used by Bind, and drivers describe once and
 * bind often, in that order. A session therefore keeps the types it was told of, and they count from its first Bind
 * that asks for binary on: rather a type too many than one too few. Of each session, or pooled client, the first
 * descriptions are looked at, of bounded number, which are all that drivers with prepared statements ever get.
 */
import type { Side } from '../../core/ports.js';

/** The first OID that PostgreSQL's own types don't have. */
const OWN_OID_MIN = 16_384;
const DESCRIPTIONS_MAX = 1000;
const SESSION_TYPES_MAX = 100;
const TYPES_MAX = 1000;

/** Of all sessions, for as long as the process lives. */
export class BinaryTypes {
  readonly #types: Readonly<Record<Side, Set<number>>> = { source: new Set(), destination: new Set() };

  add(side: Side, oid: number): void {
    if (this.#types[side].size < TYPES_MAX) this.#types[side].add(oid);
  }

  of(side: Side): readonly number[] {
    return [...this.#types[side]];
  }

  get all(): Readonly<Record<Side, readonly number[]>> {
    return { source: this.of('source'), destination: this.of('destination') };
  }
}

export class SessionBinaryTypes {
  readonly #all: BinaryTypes;
  readonly #side: Side;
  /** Made when first needed: most clients never hear of such a type. */
  #described: Set<number> | null = null;
  #left = DESCRIPTIONS_MAX;
  #binary = false;

  /** `side`: whose OIDs the client is told. */
  constructor(all: BinaryTypes, side: Side) {
    this.#all = all;
    this.#side = side;
  }

  /** Descriptions are still to be looked at. */
  get wanted(): boolean {
    return this.#left > 0;
  }

  /** RowDescription: for each column its name, relation, attribute number, type, length, modifier and format. */
  rows(bytes: Buffer, start: number, end: number): void {
    this.#left -= 1;
    if (start + 2 > end) return;
    const columns = bytes.readUInt16BE(start);
    for (let column = 0, at = start + 2; column < columns && at < end; column++) {
      const fields = bytes.indexOf(0, at) + 1;
      if (fields === 0 || fields + 18 > end) return;
      this.#has(bytes.readUInt32BE(fields + 6));
      at = fields + 18;
    }
  }

  /** ParameterDescription, or the end of a Parse: count, a type for each parameter. */
  parameters(bytes: Buffer, start: number, end: number): void {
    for (let at = start + 2; at + 4 <= end; at += 4) this.#has(bytes.readUInt32BE(at));
  }

  #has(oid: number): void {
    if (oid < OWN_OID_MIN) return;
    if (this.#binary) this.#all.add(this.#side, oid);
    else if ((this.#described ??= new Set()).size < SESSION_TYPES_MAX) this.#described.add(oid);
  }

  /** What follows the names in a Bind; `whole`: up to its end. */
  bound(bytes: Buffer, start: number, end: number, whole: boolean): void {
    if (this.#binary || !asksForBinary(bytes, start, end, whole)) return;
    this.#binary = true;
    for (const oid of this.#described ?? []) this.#all.add(this.#side, oid);
    this.#described = null;
  }
}

/** Formats of parameters come first, those of results last; a list that ends in text is taken for one of text. */
function asksForBinary(bytes: Buffer, start: number, end: number, whole: boolean): boolean {
  if (start + 2 > end) return false;
  const formats = bytes.readUInt16BE(start);
  for (let at = start + 2; at < start + 2 + 2 * formats && at + 2 <= end; at += 2) {
    if (bytes[at + 1] === 1) return true;
  }
  return whole && bytes[end - 1] === 1 && bytes[end - 2] === 0;
}
