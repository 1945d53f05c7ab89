/** Text for people on standard error under `--json`, else on standard output; the raw figures always into a file. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

const FOLDER = join('build', 'bench');

export class Output {
  readonly #json: boolean;

  constructor(json: boolean) {
    this.#json = json;
  }

  line(text = ''): void {
    (this.#json ? process.stderr : process.stdout).write(`${text}\n`);
  }

  /** Writes `build/bench/<name>.json`; under `--json` also prints it as the last line. */
  async result(name: string, value: unknown): Promise<void> {
    await mkdir(FOLDER, { recursive: true });
    const file = join(FOLDER, `${name}.json`);
    await writeFile(file, `${JSON.stringify(value, undefined, 2)}\n`);
    this.line(`\nraw figures: ${file}`);
    if (this.#json) process.stdout.write(`${JSON.stringify(value)}\n`);
  }
}
