/** Pieces of text → lines, without their ends. A line's length is bounded: what is beyond is dropped and said. */
export class LineSplitter {
  readonly #line: (text: string, cut: boolean) => void;
  readonly #charsMax: number;
  #rest = '';
  #dropping = false;

  constructor(line: (text: string, cut: boolean) => void, charsMax: number) {
    this.#line = line;
    this.#charsMax = charsMax;
  }

  push(text: string): void {
    let from = 0;
    for (let end = text.indexOf('\n'); end !== -1; end = text.indexOf('\n', from)) {
      this.#finish(text, from, end);
      from = end + 1;
    }
    if (from === text.length || this.#dropping) return;
    this.#rest += from === 0 ? text : text.slice(from);
    if (this.#rest.length > this.#charsMax) {
      this.#line(this.#rest.slice(0, this.#charsMax), true);
      this.#rest = '';
      this.#dropping = true;
    }
  }

  #finish(text: string, from: number, end: number): void {
    if (this.#dropping) {
      this.#dropping = false;
      return;
    }
    const stop = end > from && text.charCodeAt(end - 1) === 0x0d ? end - 1 : end;
    if (this.#rest === '') {
      this.#line(text.slice(from, stop), false);
      return;
    }
    const whole = this.#rest + text.slice(from, stop);
    this.#rest = '';
    this.#line(whole.endsWith('\r') ? whole.slice(0, -1) : whole, false);
  }

  end(): void {
    if (this.#rest !== '') this.#line(this.#rest.replace(/\r$/, ''), false);
    this.#rest = '';
    this.#dropping = false;
  }
}
