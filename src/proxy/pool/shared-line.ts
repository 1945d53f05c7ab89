/**
 * One connection down which reads of many clients are sent without waiting for each answer. Answers come in the order
 * sent and are dealt out to their clients.
 *
 *   sent:      [A: P B D E S] [B: Q] [A: B E S] [C: P B D E S]      one write per turn of the event loop
 *   answered:  [1 2 T D C Z]  [T D C Z] …                            each slice to its client
 *                              └ head
 *
 * States: open · blocked (takes nothing new: its head takes too long, is being cancelled, or its client does not read;
 * open again once it has nothing under way, unless it was cancelled) · closing (nothing new; closed when empty) · dead.
 *
 * Invariants:
 * - Each read ends in a sync point of its own, so that an error is one client's alone.
 * - The connection's transactions are read only: what was misjudged and writes is refused (25006), and is run again on
 *   a connection of its client's own. Hence an answer is kept whole, up to a bound, before any of it is passed on.
 * - A read that was given up (its client left, it was sent again elsewhere) keeps its place; its answer is dropped.
 * - Nothing waits behind a read that exceeds the bound: what stands behind it goes back to its clients.
 *
 * Failures: a lost connection gives back what had no answer yet, and closes the client whose answer was half passed on.
 */
import {
  encodeTerminate,
  BACKEND,
  FRAME_HEADER_BYTES,
  encodeFrame,
  parseErrorFields,
} from '../../wire/postgres/messages.js';
import { sendCancel, type Backend } from '../backend/backend.js';
import { feedFrom, type SocketFeed } from '../socket-feed.js';
import { closeWith } from '../socket-reader.js';
import { SHORT_SHARE } from './decisions.js';
import { PreparedOnServer, SERVER_NAME_PREFIX, inClientsWords } from './definitions.js';
import { LineOutput } from './line-output.js';
import type { PoolContext } from './pool-context.js';
import type { Read } from './shared-reads.js';

export interface SharedCounts {
  statements: number;
  sentAgain: number;
  refused: number;
}

export interface SharedLineDeps {
  readonly context: PoolContext;
  readonly counts: SharedCounts;
  readonly onEnded: (line: SharedLine) => void;
}

/** Frames that must be whole to be read: the end of an answer, an error, a changed setting, a tag. */
const CONTROL_BYTES_MAX = 65_536;
const LEAVE_TIMEOUT_MS = 60_000;
const READ_ONLY_REFUSED = '25006';
const CANCELED = '57014';
const STALE_PLAN = '0A000';
const PARSE_COMPLETE = encodeFrame(BACKEND.parseComplete, Buffer.alloc(0));
const UNKNOWN_STATEMENT = '26000';
const DUPLICATE_STATEMENT = '42P05';

export class SharedLine {
  readonly prepared: PreparedOnServer;
  readonly #backend: Backend;
  readonly #deps: SharedLineDeps;
  readonly #feed: SocketFeed;
  #queue: Read[] = [];
  #head = 0;
  #state: 'open' | 'blocked' | 'closing' | 'dead' = 'open';
  readonly #out: LineOutput;
  /** Bytes of the frame at hand that are still to come; its head was dealt with. */
  #remaining = 0;
  /** A header, or a frame that must be whole, of which the rest is still to come. */
  #stash: Buffer | null = null;
  /** The head at the last look, and since when it is the head. */
  #looked: Read | null = null;
  #headSinceMs = 0;
  #suspect = false;
  #paused = false;

  constructor(backend: Backend, deps: SharedLineDeps) {
    this.#backend = backend;
    this.#deps = deps;
    this.prepared = new PreparedOnServer(deps.context.bounds.preparedStatementsMax);
    const { socket } = backend;
    this.#out = new LineOutput((bytes) => {
      if (this.#state !== 'dead') socket.write(bytes);
    });
    socket.on('error', ignore);
    socket.on('close', this.#onGone);
    this.#feed = feedFrom(socket, this.#onData);
    if (socket.destroyed) this.#onGone();
    else socket.resume();
  }

  /** Reads under way, given up ones too. */
  get depth(): number {
    return this.#queue.length - this.#head;
  }

  /** Takes reads. */
  get open(): boolean {
    return this.#state === 'open' && this.depth < this.#deps.context.bounds.sharedDepthMax;
  }

  get blocked(): boolean {
    return this.#state === 'blocked';
  }

  /** `bytes[start, end)` is the read as it is to be sent; `read.prefix` goes in front of it. */
  send(read: Read, bytes: Buffer, start: number, end: number): void {
    if (this.#head === this.#queue.length) this.#headSinceMs = read.sentAtMs;
    this.#queue.push(read);
    // How long it takes is not known: nothing is to wait behind it.
    if (!read.decision.timed && this.#state === 'open') this.#state = 'blocked';
    this.#out.write(bytes, start, end);
    this.#out.flushSoon();
  }

  /** Goes in front of what is sent next. */
  write(bytes: Buffer): void {
    this.#out.write(bytes, 0, bytes.length);
  }

  /** As {@link LineOutput.bind}. */
  bind(serverName: Buffer, bytes: Buffer, start: number, end: number): void {
    this.#out.bind(serverName, bytes, start, end);
  }

  readonly #onData = (data: Buffer): void => {
    let chunk = data;
    if (this.#stash !== null) {
      chunk = Buffer.concat([this.#stash, data]);
      this.#stash = null;
    }
    const end = chunk.length;
    let at = 0;
    /** Start of what belongs to the head and was not dealt out. */
    let from = 0;
    while (at < end) {
      if (this.#remaining > 0) {
        const take = Math.min(this.#remaining, end - at);
        at += take;
        this.#remaining -= take;
        continue;
      }
      if (end - at < FRAME_HEADER_BYTES) break;
      const type = chunk[at] as number;
      const whole = chunk.readInt32BE(at + 1) + 1;
      if (whole < FRAME_HEADER_BYTES || whole > this.#deps.context.settings.frameBytesMax) {
        this.#backend.socket.destroy();
        return;
      }
      const next = at + whole;
      const plain =
        type === BACKEND.dataRow || type === BACKEND.rowDescription || type === BACKEND.bindComplete;
      if (plain || (next > end && whole > CONTROL_BYTES_MAX)) {
        if (type === BACKEND.rowDescription && next <= end) this.#described(chunk, at, next);
        if (next <= end) at = next;
        else {
          this.#remaining = next - end;
          at = end;
        }
        continue;
      }
      if (next > end) break;
      const read = this.#queue[this.#head];
      if (read === undefined) {
        if (!this.#unasked(type, chunk, at, next)) return;
        from = next;
      } else if (type === BACKEND.readyForQuery) {
        this.#deliver(read, chunk, from, next, true);
        from = next;
        if (this.#state === 'dead') return;
      } else if (!this.#look(read, type, chunk, at, next, at === from && read.kept === null)) {
        // Not the client's: what stood in front of it is.
        this.#deliver(read, chunk, from, at, false);
        if (read.instead !== null) this.#deliver(read, read.instead, 0, read.instead.length, false);
        read.instead = null;
        from = next;
      }
      at = next;
    }
    const read = this.#queue[this.#head];
    if (read !== undefined && at > from) this.#deliver(read, chunk, from, at, false);
    if (at < end) this.#stash = Buffer.from(chunk.subarray(at, end));
  };

  #described(chunk: Buffer, at: number, next: number): void {
    const types = this.#queue[this.#head]?.reads.client.types;
    if (types?.wanted === true) types.rows(chunk, at + FRAME_HEADER_BYTES, next);
  }

  /** Between answers. Returns false where the server says what it can't have been asked for. */
  #unasked(type: number, chunk: Buffer, at: number, next: number): boolean {
    if (type === BACKEND.parameterStatus || type === BACKEND.noticeResponse) return true;
    if (type === BACKEND.errorResponse) {
      // It ends the connection; the close that follows is what is acted on.
      void chunk.subarray(at, next);
      return true;
    }
    this.#backend.socket.destroy();
    return false;
  }

  /** A frame of interest in the head's answer, `first` of what is the client's. Returns whether it is, as it stands. */
  #look(read: Read, type: number, chunk: Buffer, at: number, next: number, first: boolean): boolean {
    switch (type) {
      case BACKEND.commandComplete:
        read.rows += rowsOfSelect(chunk, next);
        return true;
      case BACKEND.parseComplete:
      case BACKEND.closeComplete:
        if (read.hidden === 0) {
          read.parses = false;
          return true;
        }
        read.hidden -= 1;
        return false;
      case BACKEND.errorResponse:
        // The Parse in front of it has failed.
        if ((read.hidden > 0 || read.parses) && read.definition !== null)
          this.prepared.remove(read.definition);
        read.hidden = 0;
        read.parses = false;
        return this.#error(read, chunk.subarray(at + FRAME_HEADER_BYTES, next), first);
      case BACKEND.parameterStatus:
        return false;
      default:
        return true;
    }
  }

  #error(read: Read, payload: Buffer, first: boolean): boolean {
    const error = parseErrorFields(payload);
    if (error.severity === 'FATAL' || error.severity === 'PANIC') return read.streamed;
    read.sqlState = error.sqlState;
    if (read.definition !== null && read.saysParsed && first && error.sqlState !== CANCELED) {
      // Its own Parse may have failed otherwise, or not at all: it is run once more, as it was sent.
      this.#deps.context.definitions.renew(read.definition);
      read.again = true;
      return true;
    }
    switch (error.sqlState) {
      case READ_ONLY_REFUSED:
        read.decision.keepAlone(Infinity);
        read.again = !read.streamed;
        break;
      case STALE_PLAN:
        if (read.definition !== null) this.#deps.context.definitions.renew(read.definition);
        break;
      case UNKNOWN_STATEMENT:
      case DUPLICATE_STATEMENT:
        if (read.definition === null) break;
        this.#deps.context.definitions.renew(read.definition);
        read.again = !read.streamed;
        break;
      default:
    }
    if (read.definition === null || !payload.includes(SERVER_NAME_PREFIX)) return true;
    read.instead = encodeFrame(
      BACKEND.errorResponse,
      inClientsWords(payload, read.definition.serverName, read.statement),
    );
    return false;
  }

  /** `chunk[from, to)` is part of the head's answer; with `last`, its end. */
  #deliver(read: Read, chunk: Buffer, from: number, to: number, last: boolean): void {
    const { context } = this.#deps;
    if (!read.dropped && to > from && !read.again) {
      if (last && read.kept === null) {
        const piece = read.saysParsed
          ? behindParseComplete(chunk, from, to)
          : from === 0 && to === chunk.length
            ? chunk
            : chunk.subarray(from, to);
        read.answerBytes += piece.length;
        this.#pass(read, piece);
      } else {
        this.#keep(read, chunk.subarray(from, to), last);
      }
    }
    if (!last) return;
    this.#head += 1;
    if (this.#head === this.#queue.length) {
      this.#queue = [];
      this.#head = 0;
    } else if (this.#head > 1024) {
      this.#queue = this.#queue.slice(this.#head);
      this.#head = 0;
    }
    const nowMs = context.clock.monotonicMs();
    const tookMs = nowMs - this.#headSinceMs;
    this.#headSinceMs = nowMs;
    this.#suspect = false;
    if (!read.dropped) this.#deps.counts.statements += 1;
    // First: its client may have more for a connection that is free.
    if (this.depth === 0) this.#emptied();
    if (read.again && !read.dropped) {
      if (read.sqlState === READ_ONLY_REFUSED) this.#deps.counts.refused += 1;
      read.giveBack();
    } else {
      const { sharedReadBoundMs, sharedAloneMs } = context.bounds;
      read.decision.ranShared(tookMs, sharedReadBoundMs * SHORT_SHARE, nowMs, sharedAloneMs);
      read.done(nowMs);
    }
  }

  #keep(read: Read, piece: Buffer, last: boolean): void {
    read.answerBytes += piece.length;
    if (read.kept === null) {
      read.kept = [];
      if (read.saysParsed) {
        read.kept.push(PARSE_COMPLETE);
        read.answerBytes += PARSE_COMPLETE.length;
      }
    }
    const { kept } = read;
    kept.push(piece);
    if (!last && !read.streamed && read.answerBytes <= this.#deps.context.bounds.sharedAnswerBytesMax) {
      this.#feed.keep();
      return;
    }
    read.streamed = true;
    const all = kept.splice(0);
    this.#pass(read, all.length === 1 ? piece : Buffer.concat(all));
    if (!last && read.unreadBytes > this.#deps.context.bounds.sharedUnreadBytesMax) this.#waitForReader(read);
  }

  #pass(read: Read, piece: Buffer): void {
    read.pass(piece);
    if (read.unreadBytes > 0) this.#feed.keep();
  }

  #emptied(): void {
    if (this.#state === 'blocked') this.#state = 'open';
    if (this.#state === 'closing') this.#end(true);
  }

  /** Its client does not read: the connection is kept to it, and those behind go elsewhere. */
  #waitForReader(read: Read): void {
    if (this.#paused) return;
    this.#paused = true;
    this.#backend.socket.pause();
    this.#block();
    read.whenRead(() => {
      this.#paused = false;
      if (this.#state !== 'dead') this.#backend.socket.resume();
    });
  }

  #block(): void {
    if (this.#state === 'open') this.#state = 'blocked';
    this.#sendRestAway();
  }

  /** What stands behind the head goes back to its clients, but for the head's own client, whose order it would break. */
  #sendRestAway(): void {
    const head = this.#queue[this.#head];
    const away = new Set<Read['reads']>();
    for (let at = this.#head + 1; at < this.#queue.length; at++) {
      const read = this.#queue[at] as Read;
      if (read.dropped || read.reads === head?.reads) continue;
      away.add(read.reads);
      this.#deps.counts.sentAgain += 1;
    }
    for (const reads of away) reads.giveBackAll();
  }

  /** Call a few times within the bound; looks whether the head takes too long. */
  look(nowMs: number): void {
    const head = this.#queue[this.#head];
    if (head === undefined || this.#paused || this.#state === 'dead') {
      this.#looked = null;
      return;
    }
    const { sharedReadBoundMs } = this.#deps.context.bounds;
    if (head !== this.#looked || nowMs - this.#headSinceMs < sharedReadBoundMs || this.#suspect) {
      this.#looked = head;
      return;
    }
    // The answer may be here already and only this process late: sockets are read before this runs.
    this.#suspect = true;
    setImmediate(() => {
      setImmediate(() => this.#tooLong(head));
    });
  }

  #tooLong(head: Read): void {
    if (this.#state === 'dead' || this.#queue[this.#head] !== head || !this.#suspect) return;
    const { context } = this.#deps;
    head.decision.tookLong(context.clock.monotonicMs() + context.bounds.sharedAloneMs);
    this.#block();
  }

  /** The client of the head wants it cancelled: nothing else is on this connection when the request goes out. */
  cancelHead(read: Read): boolean {
    if (this.#queue[this.#head] !== read) return false;
    this.#block();
    if (this.#state === 'blocked') this.#state = 'closing';
    const { endpoint, processId, secretKey } = this.#backend;
    sendCancel(endpoint, processId, secretKey, this.#deps.context.settings.connectTimeoutMs).catch(
      () => undefined,
    );
    return true;
  }

  /** Takes nothing more; closed once nothing that anybody waits for is under way. */
  close(): void {
    if (this.#state === 'dead' || this.#state === 'closing') return;
    this.#state = 'closing';
    if (this.#queue.slice(this.#head).every((read) => read.dropped)) this.#end(this.depth === 0);
  }

  #end(idle: boolean): void {
    this.#state = 'dead';
    this.#detach();
    closeWith(this.#backend.socket, idle ? encodeTerminate() : undefined, LEAVE_TIMEOUT_MS);
    this.#deps.onEnded(this);
  }

  #detach(): void {
    this.#feed.stop();
    this.#backend.socket.off('close', this.#onGone);
  }

  readonly #onGone = (): void => {
    if (this.#state === 'dead') return;
    this.#state = 'dead';
    this.#detach();
    this.#deps.onEnded(this);
    const left = this.#queue.slice(this.#head);
    this.#queue = [];
    this.#head = 0;
    const [head] = left;
    const back = new Set<Read['reads']>();
    for (const read of left) {
      if (read.dropped) continue;
      if (read.streamed) read.reads.lost();
      else back.add(read.reads);
    }
    // It may be the cause.
    const { context } = this.#deps;
    head?.decision.keepAlone(context.clock.monotonicMs() + context.bounds.sharedAloneMs);
    for (const reads of back) {
      this.#deps.counts.sentAgain += 1;
      reads.giveBackAll();
    }
  };
}

/** The number at the end of `SELECT 12`, whose frame ends at `next`; 0 where there is none. */
function rowsOfSelect(chunk: Buffer, next: number): number {
  let rows = 0;
  let scale = 1;
  for (let at = next - 2; at > 0; at--) {
    const digit = (chunk[at] as number) - 0x30;
    if (digit < 0 || digit > 9) break;
    rows += digit * scale;
    scale *= 10;
  }
  return rows;
}

/** `chunk[from, to)` with what the client is told of the Parse that was not sent in front of it. */
function behindParseComplete(chunk: Buffer, from: number, to: number): Buffer {
  const piece = Buffer.allocUnsafe(PARSE_COMPLETE.length + to - from);
  PARSE_COMPLETE.copy(piece);
  chunk.copy(piece, PARSE_COMPLETE.length, from, to);
  return piece;
}

function ignore(): void {
  // The close that follows an error is what is acted on.
}
