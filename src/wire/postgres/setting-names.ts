/**
 * Which setting a SET, RESET or `set_config` names, and for how long it is set. Texts come as one byte per character.
 *
 * Where comments, escapes or other quoting leave a doubt, the answer is the one that costs more: no name, not local.
 */

export interface NamedSetting {
  /** Lower-case; null: the text doesn't tell. */
  readonly name: string | null;
  /** For its transaction only. */
  readonly local: boolean;
}

const CUSTOM_NAME = /^[a-z_][a-z0-9_$]*(?:\.[a-z_][a-z0-9_$]*)+$/i;

/** Whether `name` can be a custom setting's name, and be quoted in SQL without care. */
export function isCustomSettingName(name: string): boolean {
  return name.length <= 200 && CUSTOM_NAME.test(name);
}

const WORD = /"[^"]*"|[\w$\x80-\xff]+/y;
const SCOPES: ReadonlySet<string> = new Set(['session', 'local']);

/** `SET [SESSION | LOCAL] name …` and `RESET name`, from behind the verb; `rest` may be cut. */
export function settingOfSet(rest: string): NamedSetting {
  const unknown: NamedSetting = { name: null, local: false };
  let at = skipBlank(rest, 0);
  let word = wordAt(rest, at);
  if (word === '') return unknown;
  at = skipBlank(rest, at + word.length);
  let local = false;
  const next = wordAt(rest, at);
  if (SCOPES.has(word.toLowerCase()) && next !== '') {
    local = word.toLowerCase() === 'local';
    word = next;
    at = skipBlank(rest, at + word.length);
  }
  let name = word;
  while (rest[at] === '.') {
    at = skipBlank(rest, at + 1);
    const part = wordAt(rest, at);
    if (part === '') return unknown;
    name += `.${part}`;
    at = skipBlank(rest, at + part.length);
  }
  // U&"…", a comment that never ends, or a name that is not all there.
  if (rest[at] === '&' || rest[at] === '/' || at > rest.length) return unknown;
  return { name: name.replaceAll('"', '').toLowerCase(), local };
}

function wordAt(text: string, at: number): string {
  WORD.lastIndex = at;
  return WORD.exec(text)?.[0] ?? '';
}

/** Behind blanks and comments; past the text's end where a comment does not end in it. */
function skipBlank(text: string, from: number): number {
  let at = from;
  for (;;) {
    const code = text.charCodeAt(at);
    if (code === 0x20 || (code >= 0x09 && code <= 0x0d)) at += 1;
    else if (text.startsWith('--', at)) {
      while (at < text.length && text[at] !== '\n' && text[at] !== '\r') at += 1;
    } else if (text.startsWith('/*', at)) at = endOfComment(text, at);
    else return at;
  }
}

/** Block comments nest. */
function endOfComment(text: string, from: number): number {
  let depth = 0;
  for (let at = from; at < text.length; at += 1) {
    if (text.startsWith('/*', at)) {
      depth += 1;
      at += 1;
    } else if (text.startsWith('*/', at)) {
      depth -= 1;
      at += 1;
      if (depth === 0) return at + 1;
    }
  }
  return text.length + 1;
}

/** A whole literal, as the comma says. */
const FIRST_ARGUMENT = /^\s*\(\s*'([^'\\]*)'\s*(?:::\s*(?:pg_catalog\.)?(?:text|varchar)\s*)?,/i;

/** The arguments of `set_config(name, value, is_local)`, from behind the function's name. */
export function settingOfCall(rest: string): NamedSetting {
  const { parts, certain } = callArguments(rest);
  const local = certain && parts.length === 3 && /^\s*(?:true|'t'|'true'|'on')\s*$/i.test(parts[2] ?? '');
  const literal = FIRST_ARGUMENT.exec(rest);
  return { name: literal === null ? null : (literal[1] ?? '').toLowerCase(), local };
}

/**
 * Splits `( a, b, c )…` at its top-level commas; no parts where the parenthesis is not closed in the text. Not certain: a
 * backslash, a dollar quote, a comment or a quoted name, so that a quote may be none.
 */
function callArguments(text: string): { readonly parts: readonly string[]; readonly certain: boolean } {
  const open = /^\s*\(/.exec(text);
  const nothing = { parts: [], certain: false };
  if (open === null) return nothing;
  const parts: string[] = [];
  let certain = true;
  let depth = 0;
  let quoted = false;
  let from = open[0].length;
  for (let at = from; at < text.length; at++) {
    const char = text[at];
    if (char === "'") quoted = !quoted;
    else if (char === '\\') certain = false;
    else if (quoted) continue;
    else if (char === '"' || text.startsWith('--', at) || text.startsWith('/*', at)) certain = false;
    else if (char === '$' && !/\d/.test(text[at + 1] ?? '')) certain = false;
    else if (char === '(' || char === '[') depth += 1;
    else if (char === ')' && depth === 0) return { parts: [...parts, text.slice(from, at)], certain };
    else if (char === ')' || char === ']') depth -= 1;
    else if (char === ',' && depth === 0) {
      parts.push(text.slice(from, at));
      from = at + 1;
    }
  }
  return nothing;
}
