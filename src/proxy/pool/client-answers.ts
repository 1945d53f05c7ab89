/** Statements of a pooled client that are answered here instead of by a server (local-answers.ts). */
import { LocalAnswers, type AnswerMode } from '../session/local-answers.js';
import type { StatementLog } from '../session/statement-log.js';
import type { ClientInput } from './client-input.js';
import type { PoolContext } from './pool-context.js';

export interface AnswerOptions {
  readonly skipping?: boolean;
  readonly told?: boolean;
  readonly untilSync?: boolean;
  readonly hint?: string;
}

export class ClientAnswers {
  readonly #context: PoolContext;
  readonly #input: ClientInput;
  readonly #log: StatementLog;
  readonly #send: (frame: Buffer) => void;
  #answers: LocalAnswers | null = null;

  constructor(context: PoolContext, input: ClientInput, log: StatementLog, send: (frame: Buffer) => void) {
    this.#context = context;
    this.#input = input;
    this.#log = log;
    this.#send = send;
  }

  /** All that is to be answered here has been. */
  get done(): boolean {
    return this.#answers?.done === true;
  }

  begin(mode: AnswerMode, sqlState: string, message: string, options: AnswerOptions): void {
    const { settings, text } = this.#context;
    this.#answers = new LocalAnswers({
      mode,
      sqlState,
      message,
      ...options,
      frameBytesMax: settings.frameBytesMax,
      textBytesMax: settings.textBytesMax,
      send: this.#send,
      classify: (bytes, start, end, cut) => text.classify(bytes, start, end, cut),
      flagsOf: (statement) => this.#log.flagsOf(statement),
    });
  }

  /** Answers what the client has sent, as far as it is to be. Throws `protocol-violation`, `frame-too-large`. */
  work(): 'going-on' | 'done' | 'terminated' {
    const answers = this.#answers;
    if (answers === null) return 'going-on';
    const input = this.#input;
    for (let chunk = input.shift(); chunk !== undefined; chunk = input.shift()) {
      const used = answers.walk(chunk);
      if (answers.terminated) return 'terminated';
      if (used === chunk.length) continue;
      input.unshift(chunk.subarray(used));
      break;
    }
    return answers.done ? 'done' : 'going-on';
  }

  /** What is being answered ends as soon as it can. Returns whether it has. */
  finish(): boolean {
    return this.#answers?.finish() === true;
  }

  /** What follows goes to a server again. */
  end(): void {
    const answers = this.#answers;
    this.#answers = null;
    if (answers !== null) this.#input.unshift(answers.takePartialHeader());
  }

  clear(): void {
    this.#answers = null;
  }
}
