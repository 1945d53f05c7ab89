import type pg from 'pg';
import type { Finding } from '../../../core/ports.js';
import type { SchemaStatement } from './plan.js';
import { UnderstudyError } from '../../../core/errors.js';

export type BuildPhase = 'before-copy' | 'after-copy';

export interface BuildProgress {
  readonly done: number;
  readonly total: number;
  /** The statement about to run; undefined at the end. */
  readonly statement: SchemaStatement | undefined;
}

export interface BuildOptions {
  readonly phase: BuildPhase;
  readonly signal: AbortSignal;
  readonly onProgress?: (progress: BuildProgress) => void;
}

export interface BuildReport {
  /** Statements run now; the ones recorded as done by an earlier run are not among them. */
  readonly ran: number;
  /** Statements left out because the destination lacks a role they name. */
  readonly skipped: readonly SchemaStatement[];
  /** What failed without stopping the build: a constraint that does not validate, a view that does not refresh. */
  readonly findings: readonly Finding[];
}

export async function buildSchema(
  _destination: pg.Client,
  _statements: readonly SchemaStatement[],
  _options: BuildOptions,
): Promise<BuildReport> {
  throw new UnderstudyError('internal', 'not built');
}
