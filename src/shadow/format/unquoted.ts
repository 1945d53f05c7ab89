/** Names as the server prints them, without their quotes: pure. */

/** `public."Order"` → `public.Order`. */
export function unquotedName(name: string): string {
  const parts = name.match(/"(?:[^"]|"")*"|[^."]+/g) ?? [];
  return parts.map((part) => unquoted(part)).join('.');
}

export function unquoted(name: string): string {
  return name.startsWith('"') ? name.slice(1, -1).replaceAll('""', '"') : name;
}
