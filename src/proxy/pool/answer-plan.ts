/**
 * Which of a server's answers to extended messages are not the client's as they stand, and what is undone where a
 * message fails or is skipped.
 *
 * The pool changes what a client sends without its knowing: a Parse of its own in front of a Bind (answer hidden), or
 * in place of a Parse whose text the server holds already a Close of a name that never was (CloseComplete told as
 * ParseComplete), so that answers stay one to one and in the server's order.
 *
 * An entry is found by the segment (the messages up to one sync point, numbered as the tracker counts them) and its
 * place among the extended messages of that segment. After an error the server skips the rest of the segment: its
 * entries are undone, newest first.
 */

export type PlannedAnswer = 'pass' | 'hide' | 'as-parse';

interface Entry {
  readonly segment: number;
  readonly place: number;
  readonly answer: PlannedAnswer;
  readonly undo: (() => void) | null;
}

export class AnswerPlan {
  #entries: Entry[] = [];
  #head = 0;
  /** Extended messages sent since the last sync point. */
  #sent = 0;
  /** Answers received since the last ReadyForQuery. */
  #received = 0;

  get empty(): boolean {
    return this.#head === this.#entries.length;
  }

  /** An extended message was sent in the segment numbered `segment`. */
  sent(): void {
    this.#sent += 1;
  }

  /** As `sent`, of a message whose answer is planned, or whose failure undoes something. */
  plan(segment: number, answer: PlannedAnswer, undo: (() => void) | null): void {
    this.#entries.push({ segment, place: this.#sent, answer, undo });
    this.#sent += 1;
  }

  sentSyncPoint(): void {
    this.#sent = 0;
  }

  /** An answer came in the segment numbered `segment`. */
  received(segment: number): PlannedAnswer {
    const place = this.#received;
    this.#received += 1;
    if (this.#head === this.#entries.length) return 'pass';
    const entry = this.#entries[this.#head] as Entry;
    if (entry.segment !== segment || entry.place !== place) return 'pass';
    this.#shift();
    return entry.answer;
  }

  /** An error ended the segment numbered `segment`, and all before it. */
  failed(segment: number): void {
    let end = this.#head;
    while (end < this.#entries.length && (this.#entries[end] as Entry).segment <= segment) end += 1;
    for (let at = end - 1; at >= this.#head; at--) this.#entries[at]?.undo?.();
    this.#head = end;
    this.#compact();
  }

  ready(segment: number): void {
    this.#received = 0;
    while (this.#head < this.#entries.length && (this.#entries[this.#head] as Entry).segment <= segment)
      this.#shift();
  }

  reset(): void {
    this.#entries = [];
    this.#head = 0;
    this.#sent = 0;
    this.#received = 0;
  }

  #shift(): void {
    this.#head += 1;
    this.#compact();
  }

  #compact(): void {
    if (this.#head < this.#entries.length) return;
    this.#entries = [];
    this.#head = 0;
  }
}
