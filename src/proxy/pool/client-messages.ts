/**
 * Client → server while a pooled client is linked to a connection: notes what each message does, and gives its
 * prepared statements their names at the server.
 *
 * - A statement's name is the client's own; at the server the same text has one name for all (definitions.ts). Parse of
 *   what the connection holds already is not sent, Bind and Describe of what it lacks get a Parse in front.
 * - The unnamed statement is sent as it came. Where it was parsed on an earlier connection it is parsed again.
 * - What the client believes to exist follows the server's answers: a message that fails, or is skipped after an error,
 *   is undone (answer-plan.ts).
 */
import { FRAME_HEADER_BYTES, FRONTEND } from '../../wire/postgres/messages.js';
import { CHANGES_STATE } from '../../wire/postgres/statement-text.js';
import type { SessionBinaryTypes } from '../session/binary-types.js';
import type { ResponseTracker } from '../session/response-tracker.js';
import type { StatementLog } from '../session/statement-log.js';
import { namesEnd, TEXT_HEAD_BYTES } from './client-input.js';
import type { Decision, Decisions } from './decisions.js';
import type { SequenceMemory } from './pool-context.js';
import {
  NEVER_PREPARED,
  SERVER_NAME_PREFIX,
  inClientsWords,
  type Definition,
  type Definitions,
} from './definitions.js';
import type { PooledBackend } from './pooled-backend.js';
import type { PoolPin } from './pool-settings.js';

export interface ClientMessagesDeps {
  readonly tracker: ResponseTracker;
  readonly log: StatementLog;
  readonly decisions: Decisions;
  readonly definitions: Definitions;
  readonly sequences: SequenceMemory;
  /** A longer named statement is passed on as it is, and its client keeps the connection. */
  readonly statementBytesMax: number;
  /** Of what the client has set, for statements that are read under it. */
  readonly settings: () => string;
  /** To be told which types and formats are used. */
  readonly types: () => SessionBinaryTypes;
}

/** Prepared statements of one client. */
const NAMES_MAX = 10_000;
/** Custom settings remembered by name for one client. */
const SETTING_NAMES_MAX = 256;

export class ClientMessages {
  readonly #deps: ClientMessagesDeps;
  /** The client's prepared statements. */
  readonly names = new Map<string, Definition>();
  /** Those of them that were deallocated all at once last, which messages sent before may still speak of. */
  #gone: ReadonlyMap<string, Definition> = new Map();
  /** Of all bodies prepared since there were none; never less than what is held. */
  #namedBytes = 0;
  /** Payload of the unnamed statement's Parse, where one is alive. */
  unnamed: Buffer | null = null;
  unnamedDecision: Decision | null = null;
  /** The present connection has it. */
  #unnamedThere = false;
  /** What was sent to be run since the client has its present connection: how many statements, and the last. */
  runs = 0;
  lastRun: Decision | null = null;
  /** Something among it may create a table under whatever tag. */
  creates = false;
  /** Something was run that may have changed what the session holds. */
  dirty = false;
  /** Grows with each of that. */
  changes = 0;
  /** An unnamed statement is alive and was too long to be kept. */
  unnamedLost = false;
  pin: PoolPin | null = null;
  readonly settingNames = new Set<string>();
  /** Bytes of whole frames begun so far. */
  bytes = 0;
  #out: Buffer[] = [];
  #outBytes = 0;
  /** Frames that follow each other in what came, and go on as they are: one piece of it. */
  #run: Buffer | null = null;
  #runFrom = 0;
  #runTo = 0;

  constructor(deps: ClientMessagesDeps) {
    this.#deps = deps;
  }

  linked(): void {
    this.#unnamedThere = false;
    this.runs = 0;
    this.lastRun = null;
    this.creates = false;
  }

  /** What is to be written; null: nothing. */
  take(): Buffer | null {
    this.#endRun();
    const [first] = this.#out;
    if (first === undefined) return null;
    const all = this.#out.length === 1 ? first : Buffer.concat(this.#out, this.#outBytes);
    this.#out = [];
    this.#outBytes = 0;
    return all;
  }

  /** A piece of a frame whose head was dealt with. */
  pass(bytes: Buffer, from: number, to: number): void {
    if (this.#run === bytes && this.#runTo === from) {
      this.#runTo = to;
      return;
    }
    this.#endRun();
    this.#run = bytes;
    this.#runFrom = from;
    this.#runTo = to;
  }

  #endRun(): void {
    const run = this.#run;
    if (run === null) return;
    this.#run = null;
    const whole = this.#runFrom === 0 && this.#runTo === run.length;
    this.#push(whole ? run : run.subarray(this.#runFrom, this.#runTo));
  }

  #add(bytes: Buffer): void {
    this.#endRun();
    this.#push(bytes);
  }

  #push(bytes: Buffer): void {
    this.#out.push(bytes);
    this.#outBytes += bytes.length;
  }

  /** Deals with the frame at `at`, of which the bytes up to `end` are there. */
  frame(bytes: Buffer, at: number, end: number, backend: PooledBackend): void {
    const { tracker } = this.#deps;
    const type = bytes[at] as number;
    const payloadBytes = bytes.readInt32BE(at + 1) - 4;
    this.bytes += payloadBytes + FRAME_HEADER_BYTES;
    switch (type) {
      case FRONTEND.query:
        this.#query(bytes, at, end, payloadBytes);
        backend.plan.sentSyncPoint();
        break;
      case FRONTEND.parse:
        if (this.#parse(bytes, at, end, payloadBytes, backend)) return;
        break;
      case FRONTEND.bind:
        if (this.#bind(bytes, at, end, payloadBytes, backend)) return;
        break;
      case FRONTEND.describe:
        if (this.#describe(bytes, at, backend)) return;
        break;
      case FRONTEND.close:
        if (this.#close(bytes, at, backend)) return;
        break;
      case FRONTEND.execute:
        this.#sentExtended(backend);
        this.#deps.log.execute(nameAt(bytes, at + FRAME_HEADER_BYTES), tracker.sent, this.bytes);
        break;
      case FRONTEND.sync:
        tracker.sentSync();
        backend.plan.sentSyncPoint();
        break;
      case FRONTEND.flush:
        // Malformed: refused like an extended message, and what follows is skipped up to a Sync.
        if (payloadBytes > 0 && tracker.copy !== 'in') this.#sentExtended(backend);
        break;
      case FRONTEND.functionCall:
        // It may call anything.
        tracker.sentFunctionCall();
        backend.plan.sentSyncPoint();
        this.#changed();
        break;
      case FRONTEND.copyDone:
      case FRONTEND.copyFail:
        tracker.sentCopyEnd();
        break;
      default:
    }
    this.pass(bytes, at, end);
  }

  #sentExtended(backend: PooledBackend): void {
    this.#deps.tracker.sentExtended();
    backend.plan.sent();
  }

  #changed(): void {
    this.dirty = true;
    this.changes += 1;
  }

  #query(bytes: Buffer, at: number, end: number, payloadBytes: number): void {
    const { tracker, log, decisions } = this.#deps;
    tracker.sentQuery();
    this.#dropUnnamed();
    const start = at + FRAME_HEADER_BYTES;
    const cut = end - start < payloadBytes;
    const textEnd = cut ? Math.min(end, start + TEXT_HEAD_BYTES) : Math.max(start, end - 1);
    this.note(decisions.of(bytes, start, textEnd, cut));
    log.query(bytes, start, textEnd, tracker.sent - 1, this.bytes);
  }

  /** What a text may leave behind counts once it is sent to be run. */
  note(decision: Decision): void {
    this.runs += 1;
    this.lastRun = decision;
    this.creates ||= decision.creates;
    if (decision.pin !== null) this.pin ??= decision.pin;
    if (decision.asksSequences) this.#deps.sequences.asked = true;
    if ((decision.flags & CHANGES_STATE) !== 0) this.#changed();
    for (const name of decision.settingNames) {
      if (this.settingNames.has(name)) continue;
      this.#changed();
      if (this.settingNames.size < SETTING_NAMES_MAX) this.settingNames.add(name);
      else
        this.pin ??= { reason: 'unknown-setting', detail: `more than ${SETTING_NAMES_MAX} custom settings` };
    }
  }

  /** Returns whether the frame was dealt with; else it goes on as it is. */
  #parse(bytes: Buffer, at: number, end: number, payloadBytes: number, backend: PooledBackend): boolean {
    const { tracker, log, decisions, definitions } = this.#deps;
    const start = at + FRAME_HEADER_BYTES;
    const name = nameAt(bytes, start);
    const textStart = bytes.indexOf(0, start) + 1;
    const zero = bytes.indexOf(0, textStart);
    const complete = end - start === payloadBytes && zero !== -1 && zero < end && textStart > start;
    const cut = !complete;
    const textEnd = complete ? zero : Math.min(end, textStart + TEXT_HEAD_BYTES);
    const decision = decisions.of(bytes, textStart, textEnd, cut);
    log.parse(name, bytes, textStart, textEnd, decision.flags);
    if (complete) this.#deps.types().parameters(bytes, textEnd + 1, end);
    if (name === '') {
      this.unnamed = complete ? Buffer.from(bytes.subarray(start, end)) : null;
      this.unnamedLost = !complete;
      this.unnamedDecision = decision;
      this.#unnamedThere = true;
      this.#sentExtended(backend);
      return false;
    }
    if (
      cut ||
      payloadBytes > this.#deps.statementBytesMax ||
      tracker.skipping ||
      this.names.size >= NAMES_MAX
    ) {
      if (!tracker.skipping) {
        this.pin ??= { reason: 'statement-too-long', detail: `prepared statement ${name}` };
      }
      this.#sentExtended(backend);
      return false;
    }
    const known = this.names.get(name);
    if (known !== undefined) {
      // The server refuses to prepare a name twice, and so it does here.
      this.#ensure(known, backend);
      this.#sentExtended(backend);
      this.#addParse(known);
      return true;
    }
    const body = bytes.subarray(textStart, end);
    if (this.names.size === 0) this.#namedBytes = 0;
    this.#namedBytes += body.length;
    if (this.#namedBytes > this.#deps.statementBytesMax) this.#recountNamed();
    if (this.#namedBytes > this.#deps.statementBytesMax) {
      this.pin ??= { reason: 'statement-too-long', detail: 'all its prepared statements together' };
    }
    const definition = definitions.intern(body, textEnd - textStart, this.#deps.settings(), decision);
    this.names.set(name, definition);
    if (backend.prepared.has(definition)) {
      tracker.sentExtended();
      backend.plan.plan(tracker.sent, 'as-parse', () => this.names.delete(name));
      this.#add(frameOf(FRONTEND.close, [STATEMENT, NEVER_PREPARED]));
      return true;
    }
    this.#makeRoom(definition, backend);
    tracker.sentExtended();
    backend.plan.plan(tracker.sent, 'pass', () => {
      this.names.delete(name);
      backend.prepared.remove(definition);
    });
    this.#addParse(definition);
    return true;
  }

  /** "cached plan must not change result type", or statements were deallocated unseen: those at hand are prepared anew
   *  when next needed. */
  renewPlans(): void {
    for (const definition of this.names.values()) this.#deps.definitions.renew(definition);
  }

  /** An error's fields with statements called as the client calls them. */
  inClientsWords(payload: Buffer): Buffer {
    if (!payload.includes(SERVER_NAME_PREFIX)) return payload;
    let fields = payload;
    for (const names of [this.names, this.#gone]) {
      for (const [name, { serverName }] of names) fields = inClientsWords(fields, serverName, name);
    }
    return fields;
  }

  /** A statement ended with this tag. */
  tagged(tag: string, backend: PooledBackend): void {
    if (tag === 'DISCARD ALL' || tag === 'DEALLOCATE ALL') {
      backend.prepared.clear();
      this.#gone = new Map(this.names);
      this.names.clear();
    } else if (DDL.test(tag) || (this.creates && tag.startsWith('SELECT'))) {
      backend.ranDdl = true;
    }
  }

  #recountNamed(): void {
    this.#namedBytes = 0;
    for (const { body } of this.names.values()) this.#namedBytes += body.length;
  }

  /** Sees to it that the connection holds the statement when what follows is read. */
  #ensure(definition: Definition, backend: PooledBackend): void {
    const { tracker } = this.#deps;
    if (tracker.skipping || backend.prepared.has(definition)) return;
    this.#makeRoom(definition, backend);
    tracker.sentExtended();
    backend.plan.plan(tracker.sent, 'hide', () => backend.prepared.remove(definition));
    this.#addParse(definition);
  }

  #makeRoom(definition: Definition, backend: PooledBackend): void {
    const { tracker } = this.#deps;
    const out = backend.prepared.add(definition);
    if (out === null) return;
    tracker.sentExtended();
    backend.plan.plan(tracker.sent, 'hide', null);
    this.#add(frameOf(FRONTEND.close, [STATEMENT, out]));
  }

  #addParse(definition: Definition): void {
    this.#add(frameOf(FRONTEND.parse, [definition.serverName, definition.body]));
  }

  #bind(bytes: Buffer, at: number, end: number, payloadBytes: number, backend: PooledBackend): boolean {
    const { log, tracker } = this.#deps;
    const start = at + FRAME_HEADER_BYTES;
    const restStart = namesEnd(bytes, at);
    if (restStart === -1 || restStart > end) {
      this.#sentExtended(backend);
      return false;
    }
    const portal = nameAt(bytes, start);
    const name = statementOf(bytes, at);
    log.bind(portal, name, bytes, restStart, end);
    this.#deps.types().bound(bytes, restStart, end, end - start === payloadBytes);
    if (name === '') {
      this.#bindUnnamed(backend);
      this.#sentExtended(backend);
      return false;
    }
    const definition = this.names.get(name);
    if (definition === undefined || tracker.skipping) {
      // Not known to it: the server says so in its own words.
      this.#sentExtended(backend);
      return false;
    }
    this.note(definition.decision);
    this.#ensure(definition, backend);
    this.#sentExtended(backend);
    this.#add(boundTo(definition, bytes, at, restStart, payloadBytes + FRAME_HEADER_BYTES));
    this.pass(bytes, restStart, end);
    return true;
  }

  #dropUnnamed(): void {
    this.unnamed = null;
    this.unnamedLost = false;
  }

  /** A question of the proxy's own has ended it on the present connection. */
  unnamedGone(): void {
    this.#unnamedThere = false;
  }

  /** A Query of the client's is answered by an error and never sent. */
  refusedQuery(backend: PooledBackend): void {
    this.#deps.tracker.sentQuery();
    this.#dropUnnamed();
    backend.plan.sentSyncPoint();
  }

  /** As `refusedQuery`, of an extended message. */
  refusedExtended(backend: PooledBackend): void {
    this.#sentExtended(backend);
  }

  /**
   * What the client once sent, as the connection is to be sent it by the proxy itself: its prepared statements by their
   * names there, with a Parse in front of each that it lacks.
   */
  inServersNames(messages: Buffer, backend: PooledBackend): Buffer {
    const out: Buffer[] = [];
    for (let at = 0; at + FRAME_HEADER_BYTES <= messages.length;) {
      const end = at + messages.readInt32BE(at + 1) + 1;
      const definition =
        messages[at] === FRONTEND.bind ? this.names.get(statementOf(messages, at)) : undefined;
      if (definition === undefined) out.push(messages.subarray(at, end));
      else {
        if (!backend.prepared.has(definition)) {
          const evicted = backend.prepared.add(definition);
          if (evicted !== null) out.push(frameOf(FRONTEND.close, [STATEMENT, evicted]));
          out.push(frameOf(FRONTEND.parse, [definition.serverName, definition.body]));
        }
        const restStart = namesEnd(messages, at);
        out.push(boundTo(definition, messages, at, restStart, end - at), messages.subarray(restStart, end));
      }
      at = end;
    }
    return Buffer.concat(out);
  }

  #bindUnnamed(backend: PooledBackend): void {
    this.unnamedLost = false;
    if (this.unnamedDecision !== null) this.note(this.unnamedDecision);
    this.#unnamedAgain(backend);
  }

  #unnamedAgain(backend: PooledBackend): void {
    const { tracker } = this.#deps;
    if (this.#unnamedThere || this.unnamed === null || tracker.skipping) return;
    this.#unnamedThere = true;
    tracker.sentExtended();
    backend.plan.plan(tracker.sent, 'hide', null);
    this.#add(frameOf(FRONTEND.parse, [this.unnamed]));
  }

  #describe(bytes: Buffer, at: number, backend: PooledBackend): boolean {
    const start = at + FRAME_HEADER_BYTES;
    if (bytes[start] !== STATEMENT[0]) {
      this.#sentExtended(backend);
      return false;
    }
    const name = nameAt(bytes, start + 1);
    const definition = name === '' ? undefined : this.names.get(name);
    if (name === '') this.#unnamedAgain(backend);
    if (definition !== undefined) this.#ensure(definition, backend);
    this.#sentExtended(backend);
    if (definition === undefined || this.#deps.tracker.skipping) return false;
    this.#add(frameOf(FRONTEND.describe, [STATEMENT, definition.serverName]));
    return true;
  }

  #close(bytes: Buffer, at: number, backend: PooledBackend): boolean {
    const { log, tracker } = this.#deps;
    const start = at + FRAME_HEADER_BYTES;
    const name = nameAt(bytes, start + 1);
    if (bytes[start] !== STATEMENT[0]) {
      log.closePortal(name);
      this.#sentExtended(backend);
      return false;
    }
    if (name === '') this.#dropUnnamed();
    else log.closeStatement(name);
    const definition = this.names.get(name);
    if (definition === undefined || tracker.skipping) {
      this.#sentExtended(backend);
      return false;
    }
    this.names.delete(name);
    tracker.sentExtended();
    backend.plan.plan(tracker.sent, 'pass', () => this.names.set(name, definition));
    this.#add(frameOf(FRONTEND.close, [STATEMENT, NEVER_PREPARED]));
    return true;
  }
}

const DDL = /^(?:CREATE|ALTER|DROP|IMPORT|DO|CALL|SECURITY|REASSIGN)\b/;
/** 'S' in Describe and Close: a statement, not a portal. */
const STATEMENT = Buffer.from('S', 'latin1');

function nameAt(bytes: Buffer, start: number): string {
  if (bytes[start] === 0) return '';
  const zero = bytes.indexOf(0, start);
  return bytes.toString('latin1', start, zero === -1 ? bytes.length : zero);
}

/** The statement's name in the Bind at `at`, whose names are there. */
function statementOf(bytes: Buffer, at: number): string {
  const statementStart = bytes.indexOf(0, at + FRAME_HEADER_BYTES) + 1;
  return nameAt(bytes, statementStart);
}

/** The head of the Bind at `at`, up to the end of its names, of `whole` bytes in all, with the statement's name at the server. */
function boundTo(
  { serverName }: Definition,
  bytes: Buffer,
  at: number,
  restStart: number,
  whole: number,
): Buffer {
  const statementStart = bytes.indexOf(0, at + FRAME_HEADER_BYTES) + 1;
  const head = Buffer.allocUnsafe(statementStart - at + serverName.length);
  bytes.copy(head, 0, at, statementStart);
  head.writeInt32BE(whole - 1 - (restStart - statementStart) + serverName.length, 1);
  serverName.copy(head, statementStart - at);
  return head;
}

/** One frame around parts that are copied. */
export function frameOf(type: number, parts: readonly Buffer[]): Buffer {
  let length = 4;
  for (const part of parts) length += part.length;
  const frame = Buffer.allocUnsafe(length + 1);
  frame[0] = type;
  frame.writeInt32BE(length, 1);
  let at = FRAME_HEADER_BYTES;
  for (const part of parts) at += part.copy(frame, at);
  return frame;
}
