/**
 * What one session has sent and not been answered yet, as the tap sees it, and the texts of its prepared statements.
 *
 * Slots are reused and their text buffers grow to `textBytesMax` at most, so that a busy session allocates nothing
 * per statement. A pipeline deeper than {@link SLOTS_MAX} is not recorded beyond that depth; the tap is told nothing
 * of those statements, and `unrecorded` counts them.
 */
import type { StatementTap } from '../core/ports.js';
import { CHANGES_STATE } from '../wire/postgres/statement-text.js';

const SLOTS_MAX = 256;
/** Prepared statements of a session whose text is remembered, and portals whose statement is. */
const NAMES_MAX = 2048;

interface Slot {
  text: Buffer;
  textBytes: number;
  /** The sync point that ends the slot's segment, counted as the tracker counts them. */
  segment: number;
  startedAt: number;
  bytesToServer: number;
  simple: boolean;
}

interface Completed {
  text: Buffer;
  textBytes: number;
  durationMicros: number;
  rows: number;
  bytesToServer: number;
  bytesToClient: number;
  failed: boolean;
}

/** A prepared statement as far as the proxy cares. */
export interface PreparedText {
  /** Cut at textBytesMax. */
  readonly text: Buffer;
  /** Flags of statement-text.ts. */
  readonly flags: number;
}

export class StatementLog {
  readonly #tap: StatementTap | null;
  readonly #sessionId: number;
  readonly #textBytesMax: number;
  readonly #now: () => number;
  readonly #slots: Slot[] = [];
  #head = 0;
  #size = 0;
  /** Rows of the simple query at hand, which may hold several statements. */
  #rows = 0;
  #failed = false;
  #bytesMarkUp = 0;
  #bytesMarkDown = 0;
  /** The last one completed waits for ReadyForQuery, which may tell its transaction status. */
  readonly #completed: Completed = {
    text: EMPTY,
    textBytes: 0,
    durationMicros: 0,
    rows: 0,
    bytesToServer: 0,
    bytesToClient: 0,
    failed: false,
  };
  #hasCompleted = false;
  readonly #prepared = new Map<string, PreparedText>();
  readonly #portals = new Map<string, PreparedText>();
  #unnamedPortal: PreparedText = FORGOTTEN;
  /** The unnamed statement's text lives in a buffer that the next one overwrites. */
  readonly #unnamed: { text: Buffer; flags: number } = { text: EMPTY, flags: 0 };
  #unnamedBuffer: Buffer = EMPTY;
  unrecorded = 0;

  constructor(tap: StatementTap | null, sessionId: number, textBytesMax: number, now: () => number) {
    this.#tap = tap;
    this.#sessionId = sessionId;
    this.#textBytesMax = textBytesMax;
    this.#now = now;
  }

  // -------------------------------------------------------------------------------------------------- client side

  query(bytes: Buffer, start: number, end: number, segment: number, bytesSoFar: number): void {
    this.#push(bytes, start, Math.min(end, start + this.#textBytesMax), segment, bytesSoFar, true);
  }

  parse(name: string, bytes: Buffer, start: number, end: number, flags: number): void {
    const cut = Math.min(end, start + this.#textBytesMax);
    if (name !== '') {
      if (this.#prepared.size >= NAMES_MAX) this.#forgetOldest(this.#prepared);
      this.#prepared.set(name, { text: Buffer.from(bytes.subarray(start, cut)), flags });
      return;
    }
    const length = cut - start;
    if (this.#unnamedBuffer.length < length) this.#unnamedBuffer = Buffer.allocUnsafe(roomFor(length));
    bytes.copy(this.#unnamedBuffer, 0, start, cut);
    this.#unnamed.text = this.#unnamedBuffer.subarray(0, length);
    this.#unnamed.flags = flags;
  }

  /** Returns the flags of the statement that is going to run. */
  bind(portal: string, statement: string): number {
    const prepared = statement === '' ? this.#unnamed : (this.#prepared.get(statement) ?? FORGOTTEN);
    if (portal === '') {
      this.#unnamedPortal = prepared;
    } else {
      if (this.#portals.size >= NAMES_MAX) this.#forgetOldest(this.#portals);
      this.#portals.set(portal, prepared);
    }
    return prepared.flags;
  }

  execute(portal: string, segment: number, bytesSoFar: number): void {
    const prepared = portal === '' ? this.#unnamedPortal : (this.#portals.get(portal) ?? FORGOTTEN);
    this.#push(prepared.text, 0, prepared.text.length, segment, bytesSoFar, false);
  }

  /** Flags of a prepared statement's text. */
  flagsOf(statement: string): number {
    return statement === '' ? this.#unnamed.flags : (this.#prepared.get(statement) ?? FORGOTTEN).flags;
  }

  closeStatement(name: string): void {
    this.#prepared.delete(name);
  }

  closePortal(name: string): void {
    this.#portals.delete(name);
  }

  #forgetOldest(names: Map<string, PreparedText>): void {
    for (const oldest of names.keys()) {
      names.delete(oldest);
      return;
    }
  }

  #push(
    bytes: Buffer,
    start: number,
    end: number,
    segment: number,
    bytesSoFar: number,
    simple: boolean,
  ): void {
    if (this.#tap === null) return;
    if (this.#size === SLOTS_MAX) {
      this.unrecorded += 1;
      return;
    }
    if (this.#size === this.#slots.length) this.#addSlot();
    const slot = this.#slots[(this.#head + this.#size) % this.#slots.length] as Slot;
    const length = end - start;
    if (slot.text.length < length) slot.text = Buffer.allocUnsafe(roomFor(length));
    bytes.copy(slot.text, 0, start, end);
    slot.textBytes = length;
    slot.segment = segment;
    slot.startedAt = this.#now();
    slot.bytesToServer = bytesSoFar - this.#bytesMarkUp;
    slot.simple = simple;
    this.#bytesMarkUp = bytesSoFar;
    this.#size += 1;
  }

  /** Keeps the order of the ring by starting it over at its head. */
  #addSlot(): void {
    if (this.#head > 0) {
      const rotated = [...this.#slots.slice(this.#head), ...this.#slots.slice(0, this.#head)];
      this.#slots.splice(0, this.#slots.length, ...rotated);
      this.#head = 0;
    }
    this.#slots.push({
      text: EMPTY,
      textBytes: 0,
      segment: 0,
      startedAt: 0,
      bytesToServer: 0,
      simple: false,
    });
  }

  // -------------------------------------------------------------------------------------------------- server side

  /** The session moved: bytes from the server are counted from zero again. */
  moved(): void {
    this.#bytesMarkDown = 0;
  }

  /** CommandComplete, EmptyQueryResponse, PortalSuspended. `rows` from the tag. */
  completed(rows: number, bytesSoFar: number): void {
    const slot = this.#first();
    if (slot === undefined) return;
    if (slot.simple) this.#rows += rows;
    else this.#finish(slot, rows, false, bytesSoFar);
  }

  /** ErrorResponse in the segment numbered `segment`; the rest of that segment is skipped by the server. */
  failed(segment: number, bytesSoFar: number): void {
    const slot = this.#first();
    if (slot === undefined || slot.segment > segment) return;
    if (slot.simple) {
      this.#failed = true;
      return;
    }
    this.#finish(slot, 0, true, bytesSoFar);
    this.#dropThrough(segment);
  }

  /** ReadyForQuery that ends the segment numbered `segment`. */
  ready(segment: number, status: number, bytesSoFar: number): void {
    const slot = this.#first();
    if (slot !== undefined && slot.simple && slot.segment <= segment) {
      this.#finish(slot, this.#rows, this.#failed, bytesSoFar);
      this.#rows = 0;
      this.#failed = false;
    }
    this.#dropThrough(segment);
    this.#offer(status);
  }

  #first(): Slot | undefined {
    return this.#size === 0 ? undefined : this.#slots[this.#head];
  }

  #dropThrough(segment: number): void {
    for (let slot = this.#first(); slot !== undefined && slot.segment <= segment; slot = this.#first()) {
      this.#shift();
    }
  }

  #shift(): void {
    this.#head = (this.#head + 1) % this.#slots.length;
    this.#size -= 1;
  }

  #finish(slot: Slot, rows: number, failed: boolean, bytesSoFar: number): void {
    this.#offer(0);
    const done = this.#completed;
    // The slot's buffer is swapped with the completed one's, not copied.
    const spare = done.text;
    done.text = slot.text;
    done.textBytes = slot.textBytes;
    slot.text = spare;
    done.durationMicros = Math.max(0, Math.round((this.#now() - slot.startedAt) * 1000));
    done.rows = rows;
    done.bytesToServer = slot.bytesToServer;
    done.bytesToClient = bytesSoFar - this.#bytesMarkDown;
    done.failed = failed;
    this.#bytesMarkDown = bytesSoFar;
    this.#hasCompleted = true;
    this.#shift();
  }

  #offer(status: number): void {
    if (!this.#hasCompleted || this.#tap === null) return;
    this.#hasCompleted = false;
    const done = this.#completed;
    try {
      this.#tap.offer(
        this.#sessionId,
        done.text.subarray(0, done.textBytes),
        done.durationMicros,
        done.rows,
        done.bytesToServer,
        done.bytesToClient,
        done.failed,
        status,
      );
    } catch {
      // The tap's troubles are its own: nothing of them may reach traffic.
    }
  }
}

const EMPTY = Buffer.alloc(0);
/** Its text is not known any more, so it may do anything. */
const FORGOTTEN: PreparedText = { text: EMPTY, flags: CHANGES_STATE };

/** Powers of two, so that a session's buffers settle. */
function roomFor(bytes: number): number {
  return 2 ** Math.ceil(Math.log2(Math.max(bytes, 128)));
}
