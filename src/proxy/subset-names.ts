/**
 * Texts of the statements that one session has prepared since the router was armed, by name. A name whose text is in doubt is
 * forgotten: then the server is asked.
 */
const NAMES_MAX = 2_048;
const CHARACTERS_MAX = 4 * 1_048_576;

export class PreparedNames {
  readonly #texts = new Map<string, string>();
  #characters = 0;

  /** Null: it was closed. */
  prepared(name: string, text: string | null): void {
    const before = this.#texts.get(name);
    if (before !== undefined) this.#forget(name, before);
    if (text === null) return;
    // Whether the server has taken the new text in the old one's stead is not known; the unnamed one it has.
    if (name !== '' && before !== undefined && before !== text) return;
    this.#texts.set(name, text);
    this.#characters += text.length;
    for (const [oldest, its] of this.#texts) {
      if (this.#texts.size <= NAMES_MAX && this.#characters <= CHARACTERS_MAX) return;
      this.#forget(oldest, its);
    }
  }

  clear(): void {
    this.#texts.clear();
    this.#characters = 0;
  }

  textOf(name: string): string | undefined {
    return this.#texts.get(name);
  }

  #forget(name: string, text: string): void {
    this.#texts.delete(name);
    this.#characters -= text.length;
  }
}
