/**
 * The import directions of ARCHITECTURE.md, checked twice: the linter's rules must refuse a planted violation in
 * every folder (a rule that matches nothing would pass in silence), and the tree itself must hold none.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync, readdirSync } from 'node:fs';
import { mkdtemp, mkdir, rm, writeFile, copyFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

/** folder → the folders it may import besides itself. */
const ALLOWED: Readonly<Record<string, readonly string[]>> = {
  core: [],
  wire: ['core'],
  proxy: ['core', 'wire'],
  shadow: ['core', 'wire'],
  capture: ['core'],
  predict: ['core'],
  cutover: ['core'],
  admin: ['core', 'wire', 'proxy', 'capture', 'shadow', 'predict', 'cutover'],
  app: ['core', 'wire', 'proxy', 'capture', 'shadow', 'predict', 'cutover', 'admin'],
};

function sourceFiles(folder: string): string[] {
  return readdirSync(join(ROOT, 'src', folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .map((name) => join(ROOT, 'src', folder, name));
}

function foldersImportedBy(file: string): string[] {
  const text = readFileSync(file, 'utf8');
  const specifiers = [...text.matchAll(/(?:from|import\()\s*'(\.[^']+)'/g)].map((match) => match[1] ?? '');
  return specifiers.map(
    (specifier) => relative(join(ROOT, 'src'), join(file, '..', specifier)).split('/')[0] ?? '',
  );
}

test('no file imports against the directions', () => {
  const present = readdirSync(join(ROOT, 'src'), { withFileTypes: true }).filter((entry) =>
    entry.isDirectory(),
  );
  const violations: string[] = [];
  for (const { name: folder } of present) {
    const allowed = ALLOWED[folder];
    expect(allowed, `src/${folder} is not in the table of ARCHITECTURE.md`).toBeDefined();
    for (const file of sourceFiles(folder)) {
      for (const imported of foldersImportedBy(file)) {
        if (imported !== folder && !allowed?.includes(imported))
          violations.push(`${relative(ROOT, file)} → ${imported}`);
      }
    }
  }
  expect(violations).toEqual([]);
});

test('the linter refuses a planted import against every direction', async () => {
  const tree = await mkdtemp(join(tmpdir(), 'understudy-lint-'));
  try {
    await copyFile(join(ROOT, '.oxlintrc.json'), join(tree, '.oxlintrc.json'));
    const planted: string[] = [];
    for (const [folder, allowed] of Object.entries(ALLOWED)) {
      await mkdir(join(tree, 'src', folder), { recursive: true });
      for (const other of Object.keys(ALLOWED)) {
        if (other === folder || allowed.includes(other)) continue;
        const file = join('src', folder, `bad-${other}.ts`);
        await writeFile(
          join(tree, file),
          `import { thing } from '../${other}/thing.js';\nexport const used = thing;\n`,
        );
        planted.push(file);
      }
    }
    let report = '';
    try {
      execFileSync(join(ROOT, 'node_modules/.bin/oxlint'), ['-f', 'json'], { cwd: tree, encoding: 'utf8' });
    } catch (error) {
      report = (error as { stdout: string }).stdout;
    }
    const { diagnostics } = JSON.parse(report) as { diagnostics: { code: string; filename: string }[] };
    const refused = diagnostics
      .filter((one) => one.code.includes('no-restricted-imports'))
      .map((one) => one.filename);
    expect(new Set(refused)).toEqual(new Set(planted));
  } finally {
    await rm(tree, { recursive: true, force: true });
  }
});
