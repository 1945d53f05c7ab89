/**
 * Structured logs. Fields are chosen by the caller; SQL parameters, passwords and row values are never among them.
 */
import { pino, type Logger } from 'pino';

export interface Log {
  debug(fields: Readonly<Record<string, unknown>>, message: string): void;
  info(fields: Readonly<Record<string, unknown>>, message: string): void;
  warn(fields: Readonly<Record<string, unknown>>, message: string): void;
  error(fields: Readonly<Record<string, unknown>>, message: string): void;
  child(fields: Readonly<Record<string, unknown>>): Log;
}

export type LogLevel = 'debug' | 'info' | 'warn' | 'error' | 'silent';

/** A log whose level can be changed, for itself and all its children at once. */
export interface LeveledLog extends Log {
  setLevel(level: LogLevel): void;
}

/** JSON lines on standard error, so that standard output stays the command's answer. */
export function createLog(level: LogLevel): LeveledLog {
  const logger = pino(
    { name: 'understudy', level: 'debug', base: { pid: process.pid } },
    pino.destination({ fd: 2, sync: true }),
  );
  return new PinoLog(logger, { least: RANKS[level] });
}

const RANKS: Readonly<Record<LogLevel, number>> = { debug: 0, info: 1, warn: 2, error: 3, silent: 4 };

/** pino's children keep the level they were born with; here one threshold is shared. */
class PinoLog implements LeveledLog {
  readonly #logger: Logger;
  readonly #threshold: { least: number };

  constructor(logger: Logger, threshold: { least: number }) {
    this.#logger = logger;
    this.#threshold = threshold;
  }

  setLevel(level: LogLevel): void {
    this.#threshold.least = RANKS[level];
  }

  debug(fields: Readonly<Record<string, unknown>>, message: string): void {
    if (this.#threshold.least <= RANKS.debug) this.#logger.debug(fields, message);
  }

  info(fields: Readonly<Record<string, unknown>>, message: string): void {
    if (this.#threshold.least <= RANKS.info) this.#logger.info(fields, message);
  }

  warn(fields: Readonly<Record<string, unknown>>, message: string): void {
    if (this.#threshold.least <= RANKS.warn) this.#logger.warn(fields, message);
  }

  error(fields: Readonly<Record<string, unknown>>, message: string): void {
    if (this.#threshold.least <= RANKS.error) this.#logger.error(fields, message);
  }

  child(fields: Readonly<Record<string, unknown>>): Log {
    return new PinoLog(this.#logger.child(fields), this.#threshold);
  }
}

export const silentLog: Log = {
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
  child: () => silentLog,
};
