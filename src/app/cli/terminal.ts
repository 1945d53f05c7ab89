/**
 * What a command writes. Human text and progress go to standard output, or to standard error under `--json`, where
 * standard output carries exactly one JSON object as its last line.
 */
import { asUnderstudyError, type SerializedError, type UnderstudyError } from '../../core/errors.js';

const STYLES = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33, cyan: 36 } as const;
export type Style = keyof typeof STYLES;

export class Terminal {
  readonly json: boolean;
  readonly verbose: boolean;
  readonly #out: NodeJS.WriteStream;
  #statusShown = false;

  constructor(options: { readonly json: boolean; readonly verbose: boolean }) {
    this.json = options.json;
    this.verbose = options.verbose;
    this.#out = options.json ? process.stderr : process.stdout;
  }

  get interactive(): boolean {
    return this.#out.isTTY && process.env['TERM'] !== 'dumb';
  }

  get columns(): number {
    return this.#out.columns ?? 100;
  }

  paint(style: Style, text: string): string {
    const plain = !this.interactive || (process.env['NO_COLOR'] ?? '') !== '';
    return plain ? text : `\x1b[${STYLES[style]}m${text}\x1b[0m`;
  }

  line(text = ''): void {
    this.#clear();
    this.#out.write(`${text}\n`);
  }

  /** A line that the next one replaces; nothing where there is no terminal to replace it on. */
  transient(text: string): void {
    if (!this.interactive) return;
    this.#clear();
    this.#out.write(text.slice(0, this.columns - 1));
    this.#statusShown = true;
  }

  #clear(): void {
    if (!this.#statusShown) return;
    this.#out.write('\r\x1b[2K');
    this.#statusShown = false;
  }

  /** The command's answer under `--json`. */
  result(value: unknown): void {
    if (!this.json) return;
    this.#clear();
    process.stdout.write(`${JSON.stringify(value, bigintAsText)}\n`);
  }

  /** What happened, what to do. The stack only under `--verbose`. */
  error(thrown: unknown): UnderstudyError {
    const error = asUnderstudyError(thrown, 'internal', 'unexpected error');
    this.#clear();
    process.stderr.write(errorText(error.toJSON(), (style, text) => this.#paintError(style, text)));
    if (this.verbose) process.stderr.write(`${error.stack ?? ''}\n${causes(error)}`);
    if (this.json) process.stdout.write(`${JSON.stringify({ error: error.toJSON() }, bigintAsText)}\n`);
    return error;
  }

  #paintError(style: Style, text: string): string {
    const plain = !process.stderr.isTTY || (process.env['NO_COLOR'] ?? '') !== '';
    return plain ? text : `\x1b[${STYLES[style]}m${text}\x1b[0m`;
  }
}

function bigintAsText(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? value.toString() : value;
}

function causes(error: Error): string {
  let text = '';
  for (let at: unknown = error.cause; at instanceof Error; at = at.cause)
    text += `caused by: ${at.stack ?? ''}\n`;
  return text;
}

type Paint = (style: Style, text: string) => string;

export function errorText(error: SerializedError, paint: Paint = (_style, text) => text): string {
  const lines = error.message.split('\n');
  const head =
    lines.length === 1
      ? [`${paint('red', 'error')} ${error.code}: ${error.message}`]
      : [`${paint('red', 'error')} ${error.code}:`, ...lines.map((line) => `  ${line}`)];
  const kept = error.details['kept'];
  if (typeof kept === 'string') head.push(`  kept: ${kept}`);
  if (error.advice !== undefined) head.push(`  ${paint('cyan', 'what to do:')} ${error.advice}`);
  return `${head.join('\n')}\n`;
}
