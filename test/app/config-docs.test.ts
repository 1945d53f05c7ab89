import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { loadConfig } from '../../src/app/config.js';
import { configKeys, environmentName } from '../../src/app/config/schema.js';
import { configReference, exampleConfig } from '../../src/app/cli/example-config.js';

const root = new URL('../../', import.meta.url);
const EXAMPLE = new URL('deploy/understudy.example.yaml', root);

/** `npx vitest run test/app/config-docs.test.ts -u` writes it anew. */
test('the example in deploy/ is what `init` writes', async () => {
  await expect(exampleConfig()).toMatchFileSnapshot(EXAMPLE.pathname);
});

test('the example is a valid configuration, live and with every key uncommented', async () => {
  const environment = {
    SOURCE_PASSWORD: 'a',
    DESTINATION_PASSWORD: 'b',
    UNDERSTUDY_ADMIN_TOKEN: '0123456789abcdef',
  };
  const live = loadConfig({ file: EXAMPLE.pathname, environment });
  expect(live.source.host).toBe('source.example.com');
  const names = new Set(configKeys().flatMap((key) => key.path));
  const uncommented = (await readFile(EXAMPLE, 'utf8')).replace(
    /^( *)# ( *)([A-Za-z0-9]+):/gm,
    (whole, outer: string, inner: string, name: string) =>
      names.has(name) ? `${outer}${inner}${name}:` : whole,
  );
  for (const key of configKeys()) expect(uncommented).toMatch(new RegExp(`^ *${key.path.at(-1)}:`, 'm'));
  const folder = await mkdtemp(join(tmpdir(), 'understudy-example-'));
  try {
    await writeFile(join(folder, 'all.yaml'), uncommented);
    expect(() => loadConfig({ file: 'all.yaml', cwd: folder, environment })).toThrow(
      // The files it names are not there, and two things exclude one another; nothing else is wrong.
      /^(all\.yaml:\d+:\d+ [a-zA-Z.]+: (can’t read|subsets and shadow\.format can’t) [^\n]*\n?)+$/,
    );
  } finally {
    await rm(folder, { recursive: true });
  }
});

test('docs/configuration.md holds the reference made from the schema, and every variable', async () => {
  const page = await readFile(new URL('docs/configuration.md', root), 'utf8');
  // The formatter pads the tables.
  const plain = (text: string): string => text.replace(/ +/g, ' ').replace(/-{3,}/g, '---');
  expect(plain(page)).toContain(plain(configReference()));
  for (const key of configKeys()) expect(page).toContain(environmentName(key.path));
});
