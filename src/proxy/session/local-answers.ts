/**
 * Answers statements in the server's stead: an error for each, and ReadyForQuery where the server would send it.
 *
 * Three uses, by `mode`:
 * - once: a client cancelled the statement that waits at the gate. One statement is answered, up to its sync point.
 * - all: the outcome of a switch is in doubt. Every statement is answered until `finish` is called.
 * - transaction: the proxy rolled the client's transaction back. The first statement gets the reason, further ones
 *   25P02, until the client ends its transaction. A COMMIT that comes first gets the reason as its error, and ends it; one
 *   that comes later, and every ROLLBACK, is answered as PostgreSQL answers it in a failed transaction.
 *
 * States: between statements · skipping (an extended message was answered by an error; the rest up to Sync is
 * dropped, as a server does) · ended (transaction mode: an extended COMMIT or ROLLBACK was answered, its Sync is to come) ·
 * skipping to end (the same, by an error) · done. Nothing behind the sync point at which it is done is consumed.
 *
 * Invariant: no COMMIT is answered by anything but an error before the client was told by an error that its transaction is
 * lost.
 */
import {
  DROP,
  FrameWalker,
  PEEK,
  PEEK_HEAD,
  STOP,
  type FrameVisitor,
} from '../../wire/postgres/frame-walker.js';
import {
  BACKEND,
  FRONTEND,
  encodeCommandComplete,
  encodeErrorResponse,
  encodeFrame,
  encodeReadyForQuery,
  type TransactionStatus,
} from '../../wire/postgres/messages.js';
import { CLEAN, COMMITS, ENDS_TRANSACTION } from '../../wire/postgres/statement-text.js';

export type AnswerMode = 'once' | 'all' | 'transaction';

export interface LocalAnswersDeps {
  readonly mode: AnswerMode;
  readonly sqlState: string;
  readonly message: string;
  readonly hint?: string;
  /** An extended batch was begun and not synced: its error has been sent, the rest of it is dropped. */
  readonly skipping?: boolean;
  /** Transaction mode: the reason was told already, or the transaction had failed before. */
  readonly told?: boolean;
  /** Transaction mode: there is no transaction block to end; done at the next sync point. */
  readonly untilSync?: boolean;
  readonly frameBytesMax: number;
  readonly textBytesMax: number;
  readonly send: (frame: Buffer) => void;
  /** Flags of a text; `cut`: it went on. */
  readonly classify: (bytes: Buffer, start: number, end: number, cut: boolean) => number;
  readonly flagsOf: (statement: string) => number;
}

const EMPTY = Buffer.alloc(0);
const NO_PARAMETERS = Buffer.from([0, 0]);

export class LocalAnswers implements FrameVisitor {
  readonly #deps: LocalAnswersDeps;
  readonly #walker: FrameWalker;
  #state: 'between' | 'skipping' | 'ended' | 'skipping to end' | 'done' = 'between';
  #told: boolean;
  /** Flags of the unnamed statement, where it was parsed here, and of what was bound. */
  #unnamed: number | null = null;
  #bound: number = CLEAN;
  #finishing = false;
  terminated = false;

  constructor(deps: LocalAnswersDeps) {
    this.#deps = deps;
    this.#told = deps.told ?? false;
    if (deps.skipping === true) this.#state = 'skipping';
    this.#finishing = deps.untilSync ?? false;
    this.#walker = new FrameWalker(this, {
      frameBytesMax: deps.frameBytesMax,
      peekBytesMax: deps.textBytesMax,
    });
  }

  get done(): boolean {
    return this.#state === 'done';
  }

  /** Consumes what it answers; returns how much of the chunk that was. See FrameWalker.walk. */
  walk(chunk: Buffer): number {
    return this.#walker.walk(chunk);
  }

  takePartialHeader(): Buffer {
    return this.#walker.takePartialHeader();
  }

  /**
   * Mode `all`: answers the statement at hand to its end and no further. The other modes have ends of their own.
   * Returns whether it is done already.
   */
  finish(): boolean {
    if (this.#deps.mode !== 'all') return this.done;
    this.#finishing = true;
    if (this.#state === 'between' && !this.#walker.insideFrame) this.#state = 'done';
    return this.done;
  }

  begin(type: number): number {
    if (this.done) return STOP;
    switch (type) {
      case FRONTEND.bind:
        return PEEK_HEAD | DROP;
      case FRONTEND.terminate:
        this.terminated = true;
        return DROP;
      case FRONTEND.copyData:
      case FRONTEND.copyDone:
      case FRONTEND.copyFail:
      case FRONTEND.flush:
        return DROP;
      default:
        return PEEK | DROP;
    }
  }

  peek(type: number, bytes: Buffer, start: number, end: number, payloadBytes: number): void {
    const skipping = this.#state === 'skipping' || this.#state === 'skipping to end';
    switch (type) {
      case FRONTEND.query: {
        if (skipping) return;
        const flags = this.#deps.classify(
          bytes,
          start,
          endOfText(bytes, start, end),
          end - start < payloadBytes,
        );
        if (this.#state !== 'ended' && this.#endsTransaction(flags)) {
          this.#answerEnd(flags);
          this.#end();
        } else {
          this.#refuse();
          this.#ready();
        }
        return;
      }
      case FRONTEND.functionCall:
        if (skipping) return;
        this.#refuse();
        this.#ready();
        return;
      case FRONTEND.sync:
        this.#ready();
        return;
      case FRONTEND.parse:
      case FRONTEND.bind:
      case FRONTEND.describe:
      case FRONTEND.execute:
      case FRONTEND.close:
        if (skipping || this.#answersEnd(type, bytes, start, end, payloadBytes)) return;
        this.#refuse();
        this.#state = this.#state === 'ended' ? 'skipping to end' : 'skipping';
        return;
      default:
    }
  }

  forward(): void {
    // Everything is dropped.
  }

  #endsTransaction(flags: number): boolean {
    return this.#deps.mode === 'transaction' && (flags & ENDS_TRANSACTION) !== 0;
  }

  /** COMMIT or ROLLBACK by extended messages, whether parsed now or long ago. Returns false where it is not of that. */
  #answersEnd(type: number, bytes: Buffer, start: number, end: number, payloadBytes: number): boolean {
    if (this.#deps.mode !== 'transaction') return false;
    const { send } = this.#deps;
    if (type === FRONTEND.close) {
      send(encodeFrame(BACKEND.closeComplete, EMPTY));
      return true;
    }
    if (this.#state === 'ended') return false;
    switch (type) {
      case FRONTEND.parse:
        return this.#parse(bytes, start, end, end - start < payloadBytes);
      case FRONTEND.bind: {
        const flags = this.#flagsOf(bytes, endOfText(bytes, start, end) + 1, end);
        if (!this.#endsTransaction(flags)) return false;
        this.#bound = flags;
        send(encodeFrame(BACKEND.bindComplete, EMPTY));
        return true;
      }
      case FRONTEND.describe: {
        const statement = bytes[start] === STATEMENT;
        if (!this.#endsTransaction(statement ? this.#flagsOf(bytes, start + 1, end) : this.#bound))
          return false;
        if (statement) send(encodeFrame(BACKEND.parameterDescription, NO_PARAMETERS));
        send(encodeFrame(BACKEND.noData, EMPTY));
        return true;
      }
      case FRONTEND.execute:
        if (!this.#endsTransaction(this.#bound)) return false;
        this.#answerEnd(this.#bound);
        return true;
      default:
        return false;
    }
  }

  #parse(bytes: Buffer, start: number, end: number, cut: boolean): boolean {
    const name = endOfText(bytes, start, end);
    const text = Math.min(name + 1, end);
    const flags = this.#deps.classify(bytes, text, endOfText(bytes, text, end), cut);
    if (name === start) this.#unnamed = flags;
    if (!this.#endsTransaction(flags)) return false;
    if (name === start) {
      this.#deps.send(encodeFrame(BACKEND.parseComplete, EMPTY));
      return true;
    }
    // The server would not know it later: it can't be said to be prepared. The client is out of its transaction all the same.
    this.#refuse();
    this.#state = 'skipping to end';
    return true;
  }

  /** Flags of the statement whose name begins at `from`. */
  #flagsOf(bytes: Buffer, from: number, end: number): number {
    const name = bytes.toString('latin1', from, endOfText(bytes, from, end));
    return name === '' && this.#unnamed !== null ? this.#unnamed : this.#deps.flagsOf(name);
  }

  /** The transaction's end has come. Only a client that knows that it is lost may take a COMMIT for done. */
  #answerEnd(flags: number): void {
    if (this.#told || (flags & COMMITS) === 0) {
      this.#deps.send(encodeCommandComplete('ROLLBACK'));
      this.#told = false;
      this.#state = 'ended';
    } else {
      this.#refuse();
      this.#state = 'skipping to end';
    }
  }

  #refuse(): void {
    const { mode, sqlState, message, hint, send } = this.#deps;
    if (mode === 'transaction' && this.#told) {
      send(
        encodeErrorResponse({
          sqlState: '25P02',
          message: 'current transaction is aborted, commands ignored until end of transaction block',
        }),
      );
    } else {
      send(encodeErrorResponse({ sqlState, message, ...(hint === undefined ? {} : { hint }) }));
    }
    this.#told = true;
  }

  #ready(): void {
    if (this.#state === 'ended' || this.#state === 'skipping to end') {
      this.#end();
      return;
    }
    const last = this.#finishing || this.#deps.mode === 'once';
    const status: TransactionStatus =
      this.#deps.mode === 'transaction' && this.#deps.untilSync !== true ? 'E' : 'I';
    this.#deps.send(encodeReadyForQuery(status));
    this.#state = last && !(this.#deps.mode === 'transaction' && status === 'E') ? 'done' : 'between';
  }

  #end(): void {
    this.#deps.send(encodeReadyForQuery('I'));
    this.#state = 'done';
  }
}

/** 'S' in Describe: a statement, not a portal. */
const STATEMENT = 0x53;

/** Where the string that begins at `from` ends: at its zero byte, or with what there is. */
function endOfText(bytes: Buffer, from: number, end: number): number {
  const zero = bytes.indexOf(0, from);
  return zero === -1 || zero > end ? end : zero;
}
