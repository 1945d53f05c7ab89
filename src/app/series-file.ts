/**
 * Series in a file, where no database is at hand: JSON, one object a line.
 *
 *   {"format": "understudy-series", "version": 1, "writer": …, "createdAt": …, "origin": …}
 *   {"batch": SeriesBatch}        any number, as core/ports.ts has it; times in ms since the epoch
 *   {"end": {"batches": …}}       missing where the writer did not come to its end
 *
 * Written beside its name and renamed at the end: a file that is there is whole. It holds shapes of statements, never values;
 * keys are hashed.
 */
import { createReadStream } from 'node:fs';
import { open, rename, rm, type FileHandle } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { UnderstudyError } from '../core/errors.js';
import type { SeriesBatch } from '../core/capture-ports.js';

const FORMAT = 'understudy-series';
const VERSION = 1;

export interface SeriesFileHeader {
  readonly writer: string;
  /** ISO 8601. */
  readonly createdAt: string;
  readonly origin: string;
}

/** Where `import-log` keeps series, and `plan` looks for them, if neither a file nor a configuration is named. */
export const SERIES_FILE = 'understudy.series';

export class SeriesFileWriter {
  readonly #path: string;
  readonly #handle: FileHandle;
  #batches = 0;

  private constructor(path: string, handle: FileHandle) {
    this.#path = path;
    this.#handle = handle;
  }

  /** Throws `config-invalid` where the file can't be made, or something else is there under that name. */
  static async create(path: string, header: SeriesFileHeader): Promise<SeriesFileWriter> {
    if (!(await replaceable(path)))
      throw new UnderstudyError('config-invalid', `${path} is there, and is no file of series`, {
        advice: 'Name another file: this one would be lost.',
      });
    let handle: FileHandle;
    try {
      handle = await open(partial(path), 'w', 0o600);
    } catch (error) {
      throw new UnderstudyError('config-invalid', `${path} can’t be written`, { cause: error });
    }
    const writer = new SeriesFileWriter(path, handle);
    await writer.#line({ format: FORMAT, version: VERSION, ...header });
    return writer;
  }

  async append(batch: SeriesBatch): Promise<void> {
    await this.#line({ batch });
    this.#batches += 1;
  }

  async #line(value: object): Promise<void> {
    await this.#handle.appendFile(`${JSON.stringify(value)}\n`);
  }

  /** The file takes its name. */
  async finish(): Promise<void> {
    await this.#line({ end: { batches: this.#batches } });
    await this.#handle.sync();
    await this.#handle.close();
    await rename(partial(this.#path), this.#path);
  }

  async abandon(): Promise<void> {
    await this.#handle.close();
    await rm(partial(this.#path), { force: true });
  }
}

function partial(path: string): string {
  return `${path}.partial`;
}

/** Nothing is there, or an earlier file of series. */
async function replaceable(path: string): Promise<boolean> {
  let handle: FileHandle;
  try {
    handle = await open(path, 'r');
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'ENOENT';
  }
  try {
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(64), 0, 64, 0);
    return buffer.toString('utf8', 0, bytesRead).startsWith(`{"format":"${FORMAT}"`);
  } finally {
    await handle.close();
  }
}

/** The batches in order. Throws `log-unreadable` where the file is none, is of another version, or ends early. */
export async function* readSeriesFile(path: string): AsyncGenerator<SeriesBatch> {
  let first = true;
  let ended = false;
  const lines = createInterface({ input: createReadStream(path), crlfDelay: Infinity });
  for await (const line of lines) {
    const value = parsed(path, line);
    if (first) {
      if (value['format'] !== FORMAT || value['version'] !== VERSION)
        throw new UnderstudyError('log-unreadable', `${path} is no file of series of version ${VERSION}`);
      first = false;
    } else if ('batch' in value) yield value['batch'] as SeriesBatch;
    else if ('end' in value) ended = true;
  }
  if (!ended) throw new UnderstudyError('log-unreadable', `${path} ends early`);
}

function parsed(path: string, line: string): Readonly<Record<string, unknown>> {
  try {
    return JSON.parse(line) as Readonly<Record<string, unknown>>;
  } catch (error) {
    throw new UnderstudyError('log-unreadable', `${path} is damaged`, { cause: error });
  }
}
