import { writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { UnderstudyError } from '../../core/errors.js';
import { DEFAULT_CONFIG_FILE } from '../config.js';
import { exampleConfig } from './example-config.js';
import { EXIT, type ExitCode } from './exit-codes.js';
import type { Terminal } from './terminal.js';

/** Writes the example configuration; never over a file that exists unless `force`. Throws `config-invalid`. */
export async function runInit(
  terminal: Terminal,
  options: { readonly file: string | undefined; readonly force: boolean },
): Promise<ExitCode> {
  const path = resolve(options.file ?? DEFAULT_CONFIG_FILE);
  try {
    // It may come to hold passwords.
    await writeFile(path, exampleConfig(), { flag: options.force ? 'w' : 'wx', mode: 0o600 });
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'unknown error';
    throw new UnderstudyError('config-invalid', `can’t write ${path}: ${code}`, {
      cause: error,
      advice:
        code === 'EEXIST'
          ? 'Name another file with --config, or replace this one with --force.'
          : 'Name a file in a folder you may write to with --config.',
    });
  }
  terminal.line(`Wrote ${path}.`);
  terminal.line('Next: set source.url and destination.url in it, then run `understudy check`.');
  terminal.result({ file: path });
  return EXIT.ok;
}
