/**
 * Statements of one session that are answered here instead of by the server (local-answers.ts), out of what is held.
 *
 * States: idle → answering (`begin`) → idle (done, or abandoned).
 */
import type { HeldInput } from './held-input.js';
import { LocalAnswers, type AnswerMode } from './local-answers.js';
import type { SessionContext } from './session-context.js';

export interface AnswerOptions {
  readonly skipping?: boolean;
  readonly told?: boolean;
  readonly untilSync?: boolean;
}

export interface SessionAnswersDeps {
  readonly context: SessionContext;
  readonly held: HeldInput;
  readonly send: (frame: Buffer) => void;
  readonly flagsOf: (statement: string) => number;
}

/** terminated: the client said goodbye. done: what follows is the server's again. */
export type Answered = 'answering' | 'done' | 'terminated';

export class SessionAnswers {
  readonly #deps: SessionAnswersDeps;
  #answers: LocalAnswers | null = null;

  constructor(deps: SessionAnswersDeps) {
    this.#deps = deps;
  }

  begin(mode: AnswerMode, sqlState: string, message: string, options: AnswerOptions): void {
    const { context, send, flagsOf } = this.#deps;
    const { settings, text } = context;
    this.#answers = new LocalAnswers({
      mode,
      sqlState,
      message,
      ...options,
      frameBytesMax: settings.frameBytesMax,
      textBytesMax: settings.textBytesMax,
      send,
      classify: (bytes, start, end, cut) => text.classify(bytes, start, end, cut),
      flagsOf,
    });
  }

  get done(): boolean {
    return this.#answers?.done === true;
  }

  /** No new statement is answered any more. Returns whether that was the end of it. */
  finish(): boolean {
    return this.#answers?.finish() === true;
  }

  /** Answers what is held. Throws the client's protocol violation. */
  answerHeld(): Answered {
    const answers = this.#answers;
    if (answers === null) return 'answering';
    const { held } = this.#deps;
    for (let chunk = held.shift(); chunk !== undefined; chunk = held.shift()) {
      const used = answers.walk(chunk);
      if (answers.terminated) return 'terminated';
      if (used === chunk.length) continue;
      held.putBack(chunk.subarray(used));
      break;
    }
    held.taken();
    return answers.done ? 'done' : 'answering';
  }

  /** Ends it: a message of which only the beginning came is held again. */
  end(): void {
    const answers = this.#answers;
    this.#answers = null;
    if (answers !== null) this.#deps.held.putBack(answers.takePartialHeader());
  }

  drop(): void {
    this.#answers = null;
  }
}
