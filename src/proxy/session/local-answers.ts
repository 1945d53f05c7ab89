/**
 * Answers statements in the server's stead: an error for each, and ReadyForQuery where the server would send it.
 *
 * Three uses, by `mode`:
 * - once: a client cancelled the statement that waits at the gate. One statement is answered, up to its sync point.
 * - all: the outcome of a switch is in doubt. Every statement is answered until `finish` is called.
 * - transaction: the proxy rolled the client's transaction back. The first statement gets the reason, further ones
 *   25P02, until the client ends its transaction, which is answered as PostgreSQL answers COMMIT of a failed one.
 *
 * States: between statements · skipping (an extended message was answered by an error; the rest up to Sync is
 * dropped, as a server does) · ending (transaction mode: the extended COMMIT or ROLLBACK is being answered) · done.
 * Nothing behind the sync point at which it is done is consumed.
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
import { ENDS_TRANSACTION } from '../../wire/postgres/statement-text.js';

export type AnswerMode = 'once' | 'all' | 'transaction';

export interface LocalAnswersDeps {
  readonly mode: AnswerMode;
  readonly sqlState: string;
  readonly message: string;
  /** An extended batch was begun and not synced: its error has been sent, the rest of it is dropped. */
  readonly skipping?: boolean;
  /** Transaction mode: the reason was told already, or the transaction had failed before. */
  readonly told?: boolean;
  /** Transaction mode: there is no transaction block to end; done at the next sync point. */
  readonly untilSync?: boolean;
  readonly frameBytesMax: number;
  readonly textBytesMax: number;
  readonly send: (frame: Buffer) => void;
  readonly classify: (bytes: Buffer, start: number, end: number) => number;
  readonly flagsOf: (statement: string) => number;
}

const EMPTY = Buffer.alloc(0);
const NO_PARAMETERS = Buffer.from([0, 0]);

export class LocalAnswers implements FrameVisitor {
  readonly #deps: LocalAnswersDeps;
  readonly #walker: FrameWalker;
  #state: 'between' | 'skipping' | 'ending' | 'done' = 'between';
  #told: boolean;
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

  // ------------------------------------------------------------------------------------------------- FrameVisitor

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

  peek(type: number, bytes: Buffer, start: number, end: number): void {
    switch (type) {
      case FRONTEND.query:
        if (this.#state === 'skipping') return;
        if (this.#endsTransaction(this.#deps.classify(bytes, start, end))) {
          this.#deps.send(encodeCommandComplete('ROLLBACK'));
          this.#end();
        } else {
          this.#refuse();
          this.#ready();
        }
        return;
      case FRONTEND.functionCall:
        if (this.#state === 'skipping') return;
        this.#refuse();
        this.#ready();
        return;
      case FRONTEND.sync:
        if (this.#state === 'ending') this.#end();
        else this.#ready();
        return;
      case FRONTEND.parse:
      case FRONTEND.bind:
      case FRONTEND.describe:
      case FRONTEND.execute:
      case FRONTEND.close:
        if (this.#state === 'skipping') return;
        if (!this.#answersEnd(type, bytes, start, end)) {
          this.#refuse();
          this.#state = 'skipping';
        }
        return;
      default:
    }
  }

  forward(): void {
    // Everything is dropped.
  }

  // ------------------------------------------------------------------------------------------------------ answers

  #endsTransaction(flags: number): boolean {
    return this.#deps.mode === 'transaction' && (flags & ENDS_TRANSACTION) !== 0;
  }

  /** COMMIT or ROLLBACK by extended messages, whether parsed now or long ago. */
  #answersEnd(type: number, bytes: Buffer, start: number, end: number): boolean {
    if (this.#deps.mode !== 'transaction') return false;
    const { send } = this.#deps;
    switch (type) {
      case FRONTEND.parse: {
        const text = bytes.indexOf(0, start) + 1;
        if (!this.#endsTransaction(this.#deps.classify(bytes, text, end))) return false;
        this.#state = 'ending';
        send(encodeFrame(BACKEND.parseComplete, EMPTY));
        return true;
      }
      case FRONTEND.bind: {
        const name = bytes.indexOf(0, start) + 1;
        const statement = bytes.toString('latin1', name, Math.max(name, bytes.indexOf(0, name)));
        const ends = this.#state === 'ending' || this.#endsTransaction(this.#deps.flagsOf(statement));
        if (!ends) return false;
        this.#state = 'ending';
        send(encodeFrame(BACKEND.bindComplete, EMPTY));
        return true;
      }
      case FRONTEND.describe:
        if (this.#state !== 'ending') return false;
        if (bytes[start] === 0x53) send(encodeFrame(BACKEND.parameterDescription, NO_PARAMETERS));
        send(encodeFrame(BACKEND.noData, EMPTY));
        return true;
      case FRONTEND.execute:
        if (this.#state !== 'ending') return false;
        send(encodeCommandComplete('ROLLBACK'));
        return true;
      case FRONTEND.close:
        send(encodeFrame(BACKEND.closeComplete, EMPTY));
        return true;
      default:
        return false;
    }
  }

  #refuse(): void {
    const { mode, sqlState, message, send } = this.#deps;
    if (mode === 'transaction' && this.#told) {
      send(
        encodeErrorResponse({
          sqlState: '25P02',
          message: 'current transaction is aborted, commands ignored until end of transaction block',
        }),
      );
    } else {
      send(encodeErrorResponse({ sqlState, message }));
    }
    this.#told = true;
  }

  #ready(): void {
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
