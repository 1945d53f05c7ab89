import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const PAGES = [
  ...readdirSync(ROOT).filter((name) => name.endsWith('.md')),
  ...readdirSync(join(ROOT, 'docs'), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.md'))
    .map((name) => join('docs', name)),
];

test('every file and every script a page names exists', () => {
  const { scripts } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as {
    scripts: Record<string, string>;
  };
  const missing: string[] = [];
  for (const page of PAGES) {
    const text = readFileSync(join(ROOT, page), 'utf8');
    for (const [, target] of text.matchAll(/\]\(((?!https?:|#)[^)#\s]+)/g)) {
      if (!existsSync(join(ROOT, dirname(page), target ?? ''))) missing.push(`${page}: ${target}`);
    }
    for (const [, path] of text.matchAll(/`((?:src|test|bench|docs|deploy)\/[\w./-]+)`/g)) {
      if (!existsSync(join(ROOT, path ?? ''))) missing.push(`${page}: ${path}`);
    }
    for (const [, script] of text.matchAll(/npm run (?:--silent )?([\w:]+)/g)) {
      if (scripts[script ?? ''] === undefined) missing.push(`${page}: npm run ${script}`);
    }
  }
  expect(missing).toEqual([]);
});
