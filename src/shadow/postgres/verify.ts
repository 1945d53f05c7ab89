import type pg from 'pg';
import type { Side, TableVerdict, VerifyProgress } from '../../core/ports.js';
import type { TableInfo } from './table.js';
import { UnderstudyError } from '../../core/errors.js';

/** Two pinned control connections ({@link connectControl}), used by nobody else meanwhile. */
export interface VerifySides {
  readonly authoritative: pg.Client;
  readonly follower: pg.Client;
}

export interface VerifyTablesOptions {
  /** Emits a fresh mark on the authoritative side and resolves with its position once the follower has committed it. */
  readonly settle: (signal: AbortSignal) => Promise<string>;
  readonly signal: AbortSignal;
  readonly onProgress?: (progress: VerifyProgress) => void;
  /** Which server the authoritative connection leads to, for error codes. Default `source`. */
  readonly authoritativeSide?: Side;
  /** Rows hashed by one statement where the key can be cut into ranges. Default 10,000. */
  readonly bucketRows?: number;
  /** How often a differing row is looked at again before it counts as still changing. Default 12. */
  readonly recheckRoundsMax?: number;
}

export interface VerifyTablesResult {
  /** Rows of the authoritative side. */
  readonly rows: number;
  readonly mismatches: number;
  readonly verdicts: readonly TableVerdict[];
  /** Position of the last settle: every row was equal, or differed, there or later. */
  readonly position: string;
}

export async function verifyTables(
  _sides: VerifySides,
  _tables: readonly TableInfo[],
  _options: VerifyTablesOptions,
): Promise<VerifyTablesResult> {
  return Promise.reject(new UnderstudyError('internal', 'not built yet'));
}

/** Which of the given keys (values as text, in the order of `table.key`) hold different rows; each joined by `,`. */
export async function verifyKeys(
  _sides: VerifySides,
  _table: TableInfo,
  _keys: readonly (readonly string[])[],
): Promise<readonly string[]> {
  return Promise.reject(new UnderstudyError('internal', 'not built yet'));
}
