/** Opening logs: which format each file has, and in which order files of a rotated set belong. */
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { StringDecoder } from 'node:string_decoder';
import { UnderstudyError } from '../../core/errors.js';
import { CLOUD_FORMAT } from './cloud-format.js';
import { decompressed } from './compression.js';
import { CSV_FORMAT } from './csv-format.js';
import type { EntrySink, FormatName, LogFormat, ReaderOptions } from './entry.js';
import { JSON_FORMAT } from './json-format.js';
import { LogTime } from './log-time.js';
import { STDERR_FORMAT } from './stderr-format.js';

/** In the order in which they are tried: the strictest first. */
export const LOG_FORMATS: readonly LogFormat[] = [JSON_FORMAT, CSV_FORMAT, CLOUD_FORMAT, STDERR_FORMAT];

/** Text from a log's beginning that is looked at to find its format out. */
const SAMPLE_CHARS = 256 << 10;
const READ_BYTES = 1 << 18;
export const STDIN = '-';

export interface LogFile {
  readonly path: string;
  /** Size as stored; 0 where it is not known. */
  readonly bytesTotal: number;
  readonly format: LogFormat;
  readonly prefix: string;
  /** Of the first entry in the sample; NaN where there is none. */
  readonly firstMs: number;
  /** The whole text in pieces, from the beginning. Once only. */
  text(onBytes: (bytes: number) => void): AsyncGenerator<string>;
}

export interface OpenOptions {
  readonly prefix: string | undefined;
  readonly format: FormatName | undefined;
  readonly timezone: string | undefined;
  readonly stdin: AsyncIterable<Buffer>;
}

/**
 * Looks at each file's beginning. The files come back in order of their first entries' times.
 * Throws `log-unreadable` for a file that can't be opened or whose format is not known.
 */
export async function openLogs(paths: readonly string[], options: OpenOptions): Promise<readonly LogFile[]> {
  const files: LogFile[] = [];
  for (const path of paths) files.push(await openLog(path, options));
  return inOrder(files);
}

/** Files without a time keep their place behind the one before them. */
function inOrder(files: readonly LogFile[]): readonly LogFile[] {
  let last = -Infinity;
  const placed = files.map((file) => {
    if (!Number.isNaN(file.firstMs)) last = file.firstMs;
    return { file, at: last };
  });
  return placed.sort((one, other) => (one.at === other.at ? 0 : one.at - other.at)).map(({ file }) => file);
}

async function openLog(path: string, options: OpenOptions): Promise<LogFile> {
  const bytesTotal = path === STDIN ? 0 : await sizeOf(path);
  const { sample, rest } = await beginning(path, options);
  const { format, prefix } = formatOf(path, sample, options);
  return {
    path,
    bytesTotal,
    format,
    prefix,
    firstMs: firstTime(format, prefix, sample, options.timezone),
    text: (onBytes) => (rest === null ? textOf(path, options.stdin, onBytes) : rest(onBytes)),
  };
}

async function sizeOf(path: string): Promise<number> {
  try {
    return (await stat(path)).size;
  } catch (error) {
    throw unopened(path, error);
  }
}

function unopened(path: string, error: unknown): UnderstudyError {
  const code = error instanceof Error && 'code' in error ? String(error.code) : String(error);
  return new UnderstudyError('log-unreadable', `${path} can’t be opened: ${code}`, { cause: error });
}

interface Beginning {
  readonly sample: string;
  /** How to go on where the beginning can't be read a second time. */
  readonly rest: LogFile['text'] | null;
}

async function beginning(path: string, options: OpenOptions): Promise<Beginning> {
  let bytesRead = 0;
  let report = (bytes: number): void => {
    bytesRead += bytes;
  };
  const pieces = textOf(path, options.stdin, (bytes) => report(bytes));
  const kept: string[] = [];
  let chars = 0;
  while (chars < SAMPLE_CHARS) {
    const { value, done } = await pieces.next();
    if (done === true) break;
    kept.push(value);
    chars += value.length;
  }
  const sample = kept.join('').slice(0, SAMPLE_CHARS);
  if (path !== STDIN) {
    await pieces.return(undefined);
    return { sample, rest: null };
  }
  return {
    sample,
    async *rest(onBytes) {
      report = onBytes;
      onBytes(bytesRead);
      yield* kept;
      yield* pieces;
    },
  };
}

/** `onBytes` is told of bytes as stored, before they are unpacked. */
async function* textOf(
  path: string,
  stdin: AsyncIterable<Buffer>,
  onBytes: (bytes: number) => void,
): AsyncGenerator<string> {
  const input: AsyncIterable<Buffer> =
    path === STDIN ? stdin : createReadStream(path, { highWaterMark: READ_BYTES });
  const counted = (async function* () {
    try {
      for await (const piece of input) {
        onBytes(piece.length);
        yield piece;
      }
    } catch (error) {
      throw unopened(path, error);
    }
  })();
  const decoder = new StringDecoder('utf8');
  for await (const piece of decompressed(counted)) {
    // A window of a compressed file may unfold to much at once.
    for (let at = 0; at < piece.length; at += READ_BYTES)
      yield decoder.write(piece.subarray(at, at + READ_BYTES));
  }
  const last = decoder.end();
  if (last !== '') yield last;
}

function formatOf(
  path: string,
  sample: string,
  options: OpenOptions,
): { readonly format: LogFormat; readonly prefix: string } {
  const candidates =
    options.format === undefined
      ? LOG_FORMATS
      : LOG_FORMATS.filter((format) => format.name === options.format);
  for (const format of candidates) {
    const found = format.detect(sample, options.prefix);
    if (found !== null) return { format, prefix: found.prefix };
  }
  // An empty file is nothing to stumble over in a set of many.
  if (sample.trim() === '') return { format: STDERR_FORMAT, prefix: '%m [%p] ' };
  throw new UnderstudyError('log-unreadable', `${path}: not a format of PostgreSQL’s logs that is known`, {
    advice:
      'Give the server’s log_line_prefix: --prefix "$(psql -AtXc \'SHOW log_line_prefix\')". Messages must be in English (lc_messages).',
  });
}

function firstTime(format: LogFormat, prefix: string, sample: string, timezone: string | undefined): number {
  let firstMs = NaN;
  const sink: EntrySink = {
    entry(entry) {
      if (Number.isNaN(firstMs)) firstMs = entry.timeMs;
    },
    unreadable: () => undefined,
  };
  const options: ReaderOptions = { prefix, time: new LogTime(timezone) };
  const reader = format.open(options, sink);
  for (const line of sample.split('\n')) {
    reader.push(`${line}\n`);
    if (!Number.isNaN(firstMs)) return firstMs;
  }
  reader.end();
  return firstMs;
}
