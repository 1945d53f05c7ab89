/** The proxy's questions to one session's backend, which wait for the session's next quiet moment. */
import { UnderstudyError } from '../../core/errors.js';
import type { StateAnswer } from './session-context.js';
import type { Reply } from '../backend/reply-reader.js';

export interface OwnQuestionsDeps {
  /** A simple query can be sent now and harms nothing. */
  readonly askable: () => boolean;
  /** Sends it; everything sent by the client later goes behind it. */
  readonly send: (sql: string) => Promise<Reply>;
  /** The session's count of changes so far. */
  readonly changes: () => number;
}

interface Waiting {
  readonly sql: (() => string) | null;
  readonly resolve: (answer: StateAnswer) => void;
  readonly reject: (error: Error) => void;
}

export interface Question {
  /** Rejects where the session or its backend is lost first, or the question was given up. */
  readonly answer: Promise<StateAnswer>;
  readonly giveUp: () => void;
}

const QUIET: StateAnswer = { rows: [], sqlState: null, changes: -1 };

export class OwnQuestions {
  readonly #deps: OwnQuestionsDeps;
  #waiting: Waiting[] = [];

  constructor(deps: OwnQuestionsDeps) {
    this.#deps = deps;
  }

  /** `sql` is called when it is sent; null sends nothing and only waits for a quiet moment. */
  ask(sql: (() => string) | null): Question {
    let waiting: Waiting | undefined;
    const answer = new Promise<StateAnswer>((resolve, reject) => {
      waiting = { sql, resolve, reject };
      this.#waiting.push(waiting);
    });
    this.settle();
    const giveUp = (): void => {
      this.#waiting = this.#waiting.filter((other) => other !== waiting);
      waiting?.reject(new UnderstudyError('cancelled', 'the session was not asked in time'));
    };
    return { answer, giveUp };
  }

  /** Call whenever a quiet moment may have come. */
  settle(): void {
    while (this.#waiting.length > 0 && this.#deps.askable()) {
      const next = this.#waiting.shift();
      if (next === undefined) return;
      if (next.sql === null) {
        next.resolve(QUIET);
        continue;
      }
      const changes = this.#deps.changes();
      this.#deps.send(next.sql()).then(
        (reply) => next.resolve({ ...reply, changes }),
        (error: Error) => next.reject(error),
      );
    }
  }

  lost(): void {
    for (const waiting of this.#waiting.splice(0)) {
      waiting.reject(new UnderstudyError('cancelled', 'the session has ended'));
    }
  }
}
