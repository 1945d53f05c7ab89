import { existsSync, readFileSync } from 'node:fs';

/** The package's manifest is above this file, how far depends on where it was built to. */
function readVersion(): string {
  for (let folder = new URL('.', import.meta.url); ; folder = new URL('..', folder)) {
    const manifest = new URL('package.json', folder);
    if (existsSync(manifest))
      return (JSON.parse(readFileSync(manifest, 'utf8')) as { version: string }).version;
    if (folder.pathname === '/') return 'unknown';
  }
}

/** The package's version. */
export const VERSION = readVersion();
