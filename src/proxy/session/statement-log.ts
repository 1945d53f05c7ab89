/**
 * What one session has sent and not been answered yet, as the tap sees it, and the texts of its prepared statements.
 *
 * Slots are reused and their text buffers grow to `textBytesMax` at most, so that a busy session allocates nothing
 * per statement. A pipeline deeper than {@link SLOTS_MAX} is not recorded beyond that depth; the tap is told
 * only that they were, and `unrecorded` counts them.
 *
 * Bound parameters are copied only where keys are captured (`parameterBytesMax` above 0), up to that bound.
 */
import type { StatementTap } from '../../core/capture-ports.js';
import { CHANGES_STATE } from '../../wire/postgres/statement-text.js';

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
  parameters: Buffer;
  parameterBytes: number;
}

interface Completed {
  text: Buffer;
  textBytes: number;
  durationMicros: number;
  rows: number;
  bytesToServer: number;
  bytesToClient: number;
  failed: boolean;
  endedAt: number;
  errorClass: number;
  parameters: Buffer;
  parameterBytes: number;
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
  readonly #parameterBytesMax: number;
  readonly #now: () => number;
  readonly #slots: Slot[] = [];
  #head = 0;
  #size = 0;
  /** Rows of the simple query at hand, which may hold several statements. */
  #rows = 0;
  #failed = false;
  #errorClass = 0;
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
    endedAt: 0,
    errorClass: 0,
    parameters: EMPTY,
    parameterBytes: 0,
  };
  #hasCompleted = false;
  readonly #prepared = new Map<string, PreparedText>();
  /** Named ones, which few clients have. */
  #portals: Map<string, PreparedText> | null = null;
  #unnamedPortal: PreparedText = FORGOTTEN;
  /** The unnamed statement's text lives in a buffer that the next one overwrites. */
  readonly #unnamed: { text: Buffer; flags: number } = { text: EMPTY, flags: 0 };
  #unnamedBuffer: Buffer = EMPTY;
  /** What the unnamed portal was bound to, in a buffer that the next Bind overwrites; and that of named ones. */
  #boundBuffer: Buffer = EMPTY;
  #boundBytes = 0;
  #boundOf: Map<string, Buffer> | null = null;
  unrecorded = 0;

  constructor(
    tap: StatementTap | null,
    sessionId: number,
    textBytesMax: number,
    now: () => number,
    parameterBytesMax = 0,
  ) {
    this.#tap = tap;
    this.#sessionId = sessionId;
    this.#textBytesMax = textBytesMax;
    this.#parameterBytesMax = tap === null ? 0 : parameterBytesMax;
    this.#now = now;
  }

  // -------------------------------------------------------------------------------------------------- client side

  query(bytes: Buffer, start: number, end: number, segment: number, bytesSoFar: number): void {
    this.#push(bytes, start, Math.min(end, start + this.#textBytesMax), segment, bytesSoFar, true, EMPTY, 0);
  }

  parse(name: string, bytes: Buffer, start: number, end: number, flags: number): void {
    const cut = Math.min(end, start + this.#textBytesMax);
    if (name !== '') {
      if (this.#prepared.size >= NAMES_MAX) forgetOldest(this.#prepared);
      this.#prepared.set(name, { text: Buffer.from(bytes.subarray(start, cut)), flags });
      return;
    }
    const length = cut - start;
    if (this.#unnamedBuffer.length < length) this.#unnamedBuffer = Buffer.allocUnsafe(roomFor(length));
    bytes.copy(this.#unnamedBuffer, 0, start, cut);
    this.#unnamed.text = this.#unnamedBuffer.subarray(0, length);
    this.#unnamed.flags = flags;
  }

  /**
   * Returns the flags of the statement that is going to run. What follows the statement's name in the Bind message,
   * its parameters, is `bytes[start, end)`; less where it came in pieces.
   */
  bind(portal: string, statement: string, bytes: Buffer, start: number, end: number): number {
    if (this.#parameterBytesMax > 0) this.#bound(portal, bytes, start, end);
    const prepared = statement === '' ? this.#unnamed : (this.#prepared.get(statement) ?? FORGOTTEN);
    if (portal === '') {
      this.#unnamedPortal = prepared;
    } else {
      const portals = (this.#portals ??= new Map());
      if (portals.size >= NAMES_MAX) forgetOldest(portals);
      portals.set(portal, prepared);
    }
    return prepared.flags;
  }

  #bound(portal: string, bytes: Buffer, start: number, end: number): void {
    const cut = Math.min(end, start + this.#parameterBytesMax);
    if (portal !== '') {
      const boundOf = (this.#boundOf ??= new Map());
      if (boundOf.size >= NAMES_MAX) forgetOldest(boundOf);
      boundOf.set(portal, Buffer.from(bytes.subarray(start, cut)));
      return;
    }
    this.#boundBytes = Math.max(0, cut - start);
    if (this.#boundBuffer.length < this.#boundBytes)
      this.#boundBuffer = Buffer.allocUnsafe(roomFor(this.#boundBytes));
    bytes.copy(this.#boundBuffer, 0, start, cut);
  }

  execute(portal: string, segment: number, bytesSoFar: number): void {
    if (portal === '') {
      const { text } = this.#unnamedPortal;
      this.#push(text, 0, text.length, segment, bytesSoFar, false, this.#boundBuffer, this.#boundBytes);
      return;
    }
    const { text } = this.#portals?.get(portal) ?? FORGOTTEN;
    const bound = this.#boundOf?.get(portal) ?? EMPTY;
    this.#push(text, 0, text.length, segment, bytesSoFar, false, bound, bound.length);
  }

  /** Flags of a prepared statement's text. */
  flagsOf(statement: string): number {
    return statement === '' ? this.#unnamed.flags : (this.#prepared.get(statement) ?? FORGOTTEN).flags;
  }

  closeStatement(name: string): void {
    this.#prepared.delete(name);
  }

  closePortal(name: string): void {
    this.#portals?.delete(name);
    this.#boundOf?.delete(name);
  }

  #push(
    bytes: Buffer,
    start: number,
    end: number,
    segment: number,
    bytesSoFar: number,
    simple: boolean,
    parameters: Buffer,
    parameterBytes: number,
  ): void {
    if (this.#tap === null) return;
    if (this.#size === SLOTS_MAX) {
      this.unrecorded += 1;
      this.#tap.skipped?.();
      this.#unanswered(EMPTY, EMPTY);
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
    slot.parameterBytes = parameterBytes;
    if (parameterBytes > 0) {
      if (slot.parameters.length < parameterBytes)
        slot.parameters = Buffer.allocUnsafe(roomFor(parameterBytes));
      parameters.copy(slot.parameters, 0, 0, parameterBytes);
    }
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
      parameters: EMPTY,
      parameterBytes: 0,
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
    else this.#finish(slot, rows, false, 0, bytesSoFar);
  }

  /** ErrorResponse in the segment numbered `segment`; the rest of that segment is skipped by the server. */
  failed(segment: number, bytesSoFar: number, sqlState: string): void {
    const slot = this.#first();
    if (slot === undefined || slot.segment > segment) return;
    if (slot.simple) {
      this.#failed = true;
      this.#errorClass = errorClassOf(sqlState);
      return;
    }
    this.#finish(slot, 0, true, errorClassOf(sqlState), bytesSoFar);
    this.#dropThrough(segment);
  }

  /** ReadyForQuery that ends the segment numbered `segment`. */
  ready(segment: number, status: number, bytesSoFar: number): void {
    const slot = this.#first();
    if (slot !== undefined && slot.simple && slot.segment <= segment) {
      this.#finish(slot, this.#rows, this.#failed, this.#errorClass, bytesSoFar);
      this.#rows = 0;
      this.#failed = false;
      this.#errorClass = 0;
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

  #finish(slot: Slot, rows: number, failed: boolean, errorClass: number, bytesSoFar: number): void {
    this.#offer(0);
    const done = this.#completed;
    // The slot's buffer is swapped with the completed one's, not copied.
    const spare = done.text;
    done.text = slot.text;
    done.textBytes = slot.textBytes;
    slot.text = spare;
    const spareParameters = done.parameters;
    done.parameters = slot.parameters;
    done.parameterBytes = slot.parameterBytes;
    slot.parameters = spareParameters;
    done.endedAt = this.#now();
    done.durationMicros = Math.max(0, Math.round((done.endedAt - slot.startedAt) * 1000));
    done.rows = rows;
    done.bytesToServer = slot.bytesToServer;
    done.bytesToClient = bytesSoFar - this.#bytesMarkDown;
    done.failed = failed;
    done.errorClass = errorClass;
    this.#bytesMarkDown = bytesSoFar;
    this.#hasCompleted = true;
    this.#shift();
  }

  /** The session is over: what was sent and not answered may have been carried out, or may be yet. */
  closed(): void {
    this.#offer(0);
    for (let slot = this.#first(); slot !== undefined; slot = this.#first()) {
      this.#unanswered(
        slot.text.subarray(0, slot.textBytes),
        slot.parameterBytes === 0 ? EMPTY : slot.parameters.subarray(0, slot.parameterBytes),
      );
      this.#shift();
    }
  }

  #unanswered(text: Buffer, parameters: Buffer): void {
    try {
      this.#tap?.unanswered?.(this.#sessionId, text, parameters);
    } catch {
      // As of `offer`.
    }
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
        done.endedAt,
        done.errorClass,
        done.parameterBytes === 0 ? EMPTY : done.parameters.subarray(0, done.parameterBytes),
      );
    } catch {
      // The tap's troubles are its own: nothing of them may reach traffic.
    }
  }
}

const EMPTY = Buffer.alloc(0);
/** Its text is not known any more, so it may do anything. */
const FORGOTTEN: PreparedText = { text: EMPTY, flags: CHANGES_STATE };

function forgetOldest(names: Map<string, unknown>): void {
  for (const oldest of names.keys()) {
    names.delete(oldest);
    return;
  }
}

function errorClassOf(sqlState: string): number {
  return sqlState.length < 2 ? 0 : (sqlState.charCodeAt(0) & 0x7f) | ((sqlState.charCodeAt(1) & 0x7f) << 8);
}

/** Powers of two, so that a session's buffers settle. */
function roomFor(bytes: number): number {
  return 2 ** Math.ceil(Math.log2(Math.max(bytes, 128)));
}
