/**
 * The reads of one client that are under way on a shared connection, and the choice of what may go there.
 *
 * What may: one simple query, or one batch of Parse, Bind, Describe, Execute and Sync around the unnamed portal, whose
 * text is proven harmless (decisions.ts), from a client that has set nothing.
 *
 * Invariants: all reads of a client under way are on one connection, in order. When one has to be run again, those
 * behind it go back too, and come again in the same order.
 */
import {
  FRAME_HEADER_BYTES,
  FRONTEND,
  encodeErrorResponse,
  encodeReadyForQuery,
} from '../../wire/postgres/messages.js';
import { frameOf } from './client-messages.js';
import type { Decision } from './decisions.js';
import { declaresOwnTypes, type Definition } from './definitions.js';
import type { PooledClient } from './pooled-client.js';
import type { PoolContext } from './pool-context.js';
import type { SharedLine } from './shared-line.js';

/** A longer batch has a connection to itself. */
const BATCH_BYTES_MAX = 32_768;
const STATEMENT = Buffer.from('S', 'latin1');
const EMPTY = Buffer.alloc(0);
const READY = encodeReadyForQuery('I');

/** One read, from being sent to its answer's end. */
export class Read {
  readonly reads: SharedReads;
  /** As the client sent it. */
  readonly original: Buffer;
  readonly text: Buffer;
  readonly decision: Decision;
  /** Of the prepared statement it runs; null for a text of its own. */
  readonly definition: Definition | null;
  readonly parameters: Buffer;
  readonly sentAtMs: number;
  /** Answers at its start that are not the client's. */
  hidden = 0;
  /** Its Parse was not sent, as the server holds the statement: its client is told of ParseComplete here. */
  saysParsed = false;
  /** Its Parse, which is the client's own, was sent and not answered yet. */
  parses = false;
  /** Of the prepared statement, as its client calls it, latin1; empty for the unnamed one. */
  statement = '';
  /** Stands for the error that was just met. */
  instead: Buffer | null = null;
  /** Nobody waits for its answer any more. */
  dropped = false;
  /** Some of its answer was passed on. */
  streamed = false;
  /** It was refused and is to be run elsewhere. */
  again = false;
  sqlState: string | null = null;
  rows = 0;
  answerBytes = 0;
  kept: Buffer[] | null = null;

  constructor(
    reads: SharedReads,
    original: Buffer,
    text: Buffer,
    parameters: Buffer,
    decision: Decision,
    definition: Definition | null,
    sentAtMs: number,
  ) {
    this.reads = reads;
    this.original = original;
    this.text = text;
    this.parameters = parameters;
    this.decision = decision;
    this.definition = definition;
    this.sentAtMs = sentAtMs;
  }

  get unreadBytes(): number {
    return this.reads.client.socket.writableLength;
  }

  pass(bytes: Buffer): void {
    this.reads.client.toClient(bytes);
  }

  whenRead(listener: () => void): void {
    this.reads.whenRead(listener);
  }

  done(nowMs: number): void {
    if (!this.dropped) this.reads.answered(this, nowMs);
  }

  giveBack(): void {
    this.reads.giveBackAll();
  }
}

/** What of a batch matters, found by one look at its frames. Reused: one look at a time. */
const batch = {
  end: 0,
  textStart: 0,
  textEnd: 0,
  parse: -1,
  bind: -1,
  bindNames: 0,
  bindEnd: 0,
  statement: '',
  describesStatement: false,
};

export class SharedReads {
  readonly client: PooledClient;
  readonly #context: PoolContext;
  #line: SharedLine | null = null;
  #under: Read[] = [];
  #lastText: Buffer = EMPTY;
  #lastDecision: Decision | null = null;
  /** What follows the name in the Parse that came last, and what it is known as; null: it came once so far. */
  #lastBody: Buffer = EMPTY;
  #lastDefinition: Definition | null = null;
  #whenRead: (() => void) | null = null;

  constructor(client: PooledClient, context: PoolContext) {
    this.client = client;
    this.#context = context;
  }

  /** The client has been sent part of an answer. */
  get insideAnswer(): boolean {
    return this.#under[0]?.streamed === true;
  }

  /** Sends off the reads at the start of `bytes`; returns how many of them that was. */
  leading(bytes: Buffer): number {
    let used = 0;
    while (used < bytes.length) {
      const took = this.#one(bytes, used);
      if (took === 0) break;
      used += took;
    }
    return used;
  }

  #one(bytes: Buffer, from: number): number {
    if (bytes.length - from < FRAME_HEADER_BYTES) return 0;
    const type = bytes[from] as number;
    return type === FRONTEND.query ? this.#query(bytes, from) : this.#batch(bytes, from);
  }

  #query(bytes: Buffer, from: number): number {
    const end = from + bytes.readInt32BE(from + 1) + 1;
    const textStart = from + FRAME_HEADER_BYTES;
    if (end > bytes.length || end - from > BATCH_BYTES_MAX || end <= textStart || bytes[end - 1] !== 0)
      return 0;
    const decision = this.#decision(bytes, textStart, end - 1);
    const line = this.#lineFor(decision);
    if (line === null) return 0;
    this.client.messages.unnamed = null;
    const text = bytes.subarray(textStart, end - 1);
    this.#send(line, bytes, from, end, text, EMPTY, decision);
    return end - from;
  }

  #batch(bytes: Buffer, from: number): number {
    if (!readBatch(bytes, from)) return 0;
    const { messages } = this.client;
    const { end, statement, parse, textStart, textEnd } = batch;
    if (parse !== -1) {
      const decision = this.#decision(bytes, textStart, textEnd);
      const line = this.#lineFor(decision);
      if (line === null || declaresOwnTypes(bytes, textEnd + 1, batch.bind)) return 0;
      this.#noteFormats(bytes);
      messages.unnamed = bytes.subarray(parse + FRAME_HEADER_BYTES, batch.bind);
      messages.unnamedDecision = decision;
      const definition = this.#repeated(bytes, decision);
      if (definition !== null) this.#sendNamed(line, bytes, from, definition);
      else {
        const text = bytes.subarray(textStart, textEnd);
        this.#send(line, bytes, from, end, text, this.#bound(bytes), decision);
      }
      return end - from;
    }
    const definition = statement === '' ? undefined : messages.names.get(statement);
    if (definition === undefined || definition.declaresOwnTypes) return 0;
    const line = this.#lineFor(definition.decision);
    if (line === null) return 0;
    this.#noteFormats(bytes);
    this.#sendNamed(line, bytes, from, definition);
    return end - from;
  }

  #noteFormats(bytes: Buffer): void {
    this.client.types.bound(bytes, batch.bindNames, batch.bindEnd, true);
  }

  /** What was bound, for the tap, where keys are captured. */
  #bound(bytes: Buffer): Buffer {
    const most = this.#context.settings.parameterBytesMax;
    if (most === 0) return EMPTY;
    return bytes.subarray(batch.bindNames, Math.min(batch.bindEnd, batch.bindNames + most));
  }

  /** The same text as last time has the same verdict, without a look into the table. */
  #decision(bytes: Buffer, start: number, end: number): Decision {
    const last = this.#lastDecision;
    if (last !== null && sameBytes(this.#lastText, bytes, start, end)) return last;
    const decision = this.#context.decisions.of(bytes, start, end, false);
    this.#lastDecision = decision;
    this.#lastText = Buffer.from(bytes.subarray(start, end));
    return decision;
  }

  /** What the statement in the batch's Parse is known as; null: it came once so far. */
  #repeated(bytes: Buffer, decision: Decision): Definition | null {
    const { textStart, textEnd, bind } = batch;
    const last = this.#lastDefinition;
    if (last !== null && last.decision === decision && sameBytes(this.#lastBody, bytes, textStart, bind)) {
      return last;
    }
    const body = bytes.subarray(textStart, bind);
    const definition = this.#context.definitions.repeated(body, textEnd - textStart, decision);
    this.#lastDefinition = definition;
    if (definition !== null) this.#lastBody = definition.body;
    return definition;
  }

  #lineFor(decision: Decision): SharedLine | null {
    const { pool } = this.client;
    if (!decision.mayShare(pool.facts, this.#context.clock.monotonicMs())) return null;
    if (this.#under.length === 0) return pool.line(!decision.timed);
    return decision.timed && this.#line !== null && this.#line.open ? this.#line : null;
  }

  #send(
    line: SharedLine,
    bytes: Buffer,
    from: number,
    end: number,
    text: Buffer,
    parameters: Buffer,
    decision: Decision,
  ): void {
    const original = from === 0 && end === bytes.length ? bytes : bytes.subarray(from, end);
    const sentAtMs = this.#context.clock.monotonicMs();
    const read = new Read(this, original, text, parameters, decision, null, sentAtMs);
    this.#begin(line, read);
    line.send(read, bytes, from, end);
  }

  #begin(line: SharedLine, read: Read): void {
    this.#line = line;
    this.#under.push(read);
    this.client.readsBegun();
  }

  /**
   * A prepared statement, or a text that comes again and again without a name, goes by its name at the server, and is
   * prepared there first where it isn't. Where the client sent a Parse itself, it is told of that, sent or not.
   */
  #sendNamed(line: SharedLine, bytes: Buffer, from: number, definition: Definition): void {
    const { parse, bind, bindNames, bindEnd, describesStatement, end } = batch;
    const read = new Read(
      this,
      from === 0 && end === bytes.length ? bytes : bytes.subarray(from, end),
      definition.text,
      this.#bound(bytes),
      definition.decision,
      definition,
      this.#context.clock.monotonicMs(),
    );
    read.statement = batch.statement;
    // A name means what it meant when it was parsed; without one, what it means now.
    const facts = parse === -1 ? null : this.client.pool.facts;
    if (line.prepared.has(definition, facts)) {
      read.saysParsed = parse !== -1;
    } else {
      const out = line.prepared.add(definition, this.client.pool.facts);
      if (out !== null) {
        line.write(frameOf(FRONTEND.close, [STATEMENT, out]));
        read.hidden += 1;
      }
      line.write(frameOf(FRONTEND.parse, [definition.serverName, definition.body]));
      if (parse === -1) read.hidden += 1;
      else read.parses = true;
    }
    const describe = describesStatement
      ? frameOf(FRONTEND.describe, [STATEMENT, definition.serverName])
      : EMPTY;
    const describedFirst = describesStatement && bind > from;
    if (describedFirst) line.write(describe);
    line.bind(definition.serverName, bytes, bindNames, bindEnd);
    let rest = bindEnd;
    if (describesStatement && !describedFirst) {
      line.write(describe);
      rest += bytes.readInt32BE(bindEnd + 1) + 1;
    }
    this.#begin(line, read);
    line.send(read, bytes, rest, end);
  }

  answered(read: Read, nowMs: number): void {
    this.#under.shift();
    if (this.#context.tap !== null) this.#offer(read, nowMs);
    if (this.#under.length > 0) return;
    this.#line = null;
    this.client.readsDone();
  }

  #offer(read: Read, nowMs: number): void {
    const { tap, settings } = this.#context;
    const { sqlState } = read;
    const text =
      read.text.length > settings.textBytesMax ? read.text.subarray(0, settings.textBytesMax) : read.text;
    try {
      tap?.offer(
        this.client.id,
        text,
        Math.max(0, Math.round((nowMs - read.sentAtMs) * 1000)),
        read.rows,
        read.original.length,
        read.answerBytes,
        sqlState !== null,
        IDLE,
        nowMs,
        sqlState === null ? 0 : sqlState.charCodeAt(0) | (sqlState.charCodeAt(1) << 8),
        read.parameters,
      );
    } catch {
      // The tap's troubles are its own: nothing of them may reach traffic.
    }
  }

  /** All that is under way comes back, in order, in front of what the client has sent since. */
  giveBackAll(): void {
    const back = this.#under.splice(0);
    this.#line = null;
    for (const read of back) read.dropped = true;
    if (back.length === 0) return;
    this.client.readsBack(Buffer.concat(back.map((read) => read.original)));
    this.client.readsDone();
  }

  /** The client has left. */
  abandon(): void {
    for (const read of this.#under.splice(0)) read.dropped = true;
    this.drained();
  }

  /** The connection was lost in the middle of an answer. */
  lost(): void {
    this.client.readLost();
  }

  /** Cancels the client's oldest read: by the server where it runs, by an answer of our own where it waits. */
  cancel(refusal: { readonly sqlState: string; readonly message: string }): void {
    const [first] = this.#under;
    const line = this.#line;
    if (first === undefined || line === null || line.cancelHead(first)) return;
    first.dropped = true;
    first.sqlState = refusal.sqlState;
    this.client.toClient(Buffer.concat([encodeErrorResponse(refusal), READY]));
    this.answered(first, this.#context.clock.monotonicMs());
  }

  whenRead(listener: () => void): void {
    this.#whenRead = listener;
  }

  /** The client has read all it was sent, or has left. */
  drained(): void {
    const listener = this.#whenRead;
    if (listener === null) return;
    this.#whenRead = null;
    listener();
  }
}

const IDLE = 0x49;

function sameBytes(known: Buffer, bytes: Buffer, start: number, end: number): boolean {
  const length = end - start;
  if (known.length !== length) return false;
  for (let at = 0; at < length; at++) if (known[at] !== bytes[start + at]) return false;
  return true;
}

/** Reads the batch at `from` into `batch`. False: it is not whole, or not of the one form that may be shared. */
function readBatch(bytes: Buffer, from: number): boolean {
  batch.parse = -1;
  batch.bind = -1;
  batch.describesStatement = false;
  let executed = false;
  let described = '';
  let at = from;
  const limit = Math.min(bytes.length, from + BATCH_BYTES_MAX);
  while (at + FRAME_HEADER_BYTES <= limit) {
    const type = bytes[at] as number;
    const next = at + bytes.readInt32BE(at + 1) + 1;
    if (next > limit || next < at + FRAME_HEADER_BYTES) return false;
    const payload = at + FRAME_HEADER_BYTES;
    switch (type) {
      case FRONTEND.parse: {
        if (at !== from || bytes[payload] !== 0) return false;
        batch.parse = at;
        batch.textStart = payload + 1;
        batch.textEnd = bytes.indexOf(0, payload + 1);
        if (batch.textEnd === -1 || batch.textEnd >= next) return false;
        break;
      }
      case FRONTEND.bind: {
        if (batch.bind !== -1 || executed || bytes[payload] !== 0) return false;
        const zero = bytes[payload + 1] === 0 ? payload + 1 : bytes.indexOf(0, payload + 1);
        if (zero === -1 || zero >= next) return false;
        batch.bind = at;
        batch.bindNames = zero + 1;
        batch.bindEnd = next;
        batch.statement = zero === payload + 1 ? '' : bytes.toString('latin1', payload + 1, zero);
        break;
      }
      case FRONTEND.describe:
        if (executed) return false;
        if (bytes[payload] === STATEMENT[0]) {
          if (batch.describesStatement) return false;
          batch.describesStatement = true;
          described = bytes[payload + 1] === 0 ? '' : bytes.toString('latin1', payload + 1, next - 1);
        } else if (batch.bind === -1 || bytes[payload + 1] !== 0) return false;
        break;
      case FRONTEND.execute:
        if (executed || batch.bind === -1 || bytes[payload] !== 0) return false;
        executed = true;
        break;
      case FRONTEND.sync:
        batch.end = next;
        return executed && fits(bytes, from, described);
      default:
        return false;
    }
    at = next;
  }
  return false;
}

/** Parse belongs to the unnamed statement, Describe to the one that is bound; and they stand where they usually do. */
function fits(bytes: Buffer, from: number, described: string): boolean {
  const { parse, bind, bindEnd, statement, describesStatement } = batch;
  if (describesStatement && described !== statement) return false;
  if (parse !== -1) {
    // The frame of Parse reaches to that of Bind, unless the statement is described in between.
    return statement === '' && !describesStatement;
  }
  if (!describesStatement) return bind === from;
  // Describe in front of Bind, or right behind it.
  const first = from + bytes.readInt32BE(from + 1) + 1;
  return bytes[from] === FRONTEND.describe
    ? bind === first
    : bind === from && bytes[bindEnd] === FRONTEND.describe;
}
