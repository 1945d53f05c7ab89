/**
 * Texts of the statements that one session has prepared since the router was armed, by name. A name whose text is in doubt is
 * forgotten: then the server is asked.
 *
 * What was sent counts once the server has answered it without an error. Until then it counts behind it in the same pipeline,
 * where it is skipped if it fails.
 */
const NAMES_MAX = 2_048;
const CHARACTERS_MAX = 4 * 1_048_576;

export class PreparedNames {
  readonly #texts = new Map<string, string>();
  readonly #sent = new Map<string, string>();
  /** How many had come when it was sent. */
  #errors = 0;
  #unnamedInDoubt = false;
  #characters = 0;

  /** It is being sent; null: it is being closed. `errors`: how many have come from the server so far. */
  sent(name: string, text: string | null, errors: number): void {
    this.#settle(errors);
    const before = this.#texts.get(name);
    if (before !== undefined) this.#forget(name, before);
    this.#sent.delete(name);
    if (name === '') this.#unnamedInDoubt = false;
    if (text === null) return;
    this.#errors = errors;
    this.#sent.set(name, text);
    if (this.#sent.size > NAMES_MAX) this.clear();
  }

  /** All that was sent was answered. */
  answered(errors: number): void {
    this.#settle(errors);
    for (const [name, text] of this.#sent) this.known(name, text);
    this.#sent.clear();
  }

  /** Which unnamed statement the server has left is not known: perhaps it skipped the last one. */
  get unnamedInDoubt(): boolean {
    return this.#unnamedInDoubt;
  }

  #settle(errors: number): void {
    if (errors === this.#errors) return;
    if (this.#sent.has('')) this.#unnamedInDoubt = true;
    this.#sent.clear();
  }

  /** The server says so. */
  known(name: string, text: string): void {
    const before = this.#texts.get(name);
    if (before !== undefined) this.#forget(name, before);
    this.#texts.set(name, text);
    this.#characters += text.length;
    for (const [oldest, its] of this.#texts) {
      if (this.#texts.size <= NAMES_MAX && this.#characters <= CHARACTERS_MAX) return;
      this.#forget(oldest, its);
    }
  }

  clear(): void {
    this.#texts.clear();
    this.#sent.clear();
    this.#characters = 0;
  }

  textOf(name: string, errors: number): string | undefined {
    this.#settle(errors);
    return this.#sent.get(name) ?? this.#texts.get(name);
  }

  #forget(name: string, text: string): void {
    this.#texts.delete(name);
    this.#characters -= text.length;
  }
}
