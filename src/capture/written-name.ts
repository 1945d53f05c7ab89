import type { TableReference } from './access.js';

/** The name in a text, as PostgreSQL reads `'public."Numbers"'` from a string; null for what is none. */
export function writtenName(text: string): TableReference | null {
  const parts = text.match(/"(?:[^"]|"")*"|[^."]+/g) ?? [];
  const names = parts.map((part) =>
    part.startsWith('"') ? part.slice(1, -1).replaceAll('""', '"') : part.trim().toLowerCase(),
  );
  const name = names.at(-1);
  return name === undefined || names.length > 2 ? null : { schema: names.at(-2) ?? null, name };
}
