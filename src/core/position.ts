/**
 * Positions in a PostgreSQL change log.
 *
 * An LSN is a 64-bit byte position, written by the server as two hexadecimal halves `X/Y`.
 * https://www.postgresql.org/docs/current/datatype-pg-lsn.html
 */
import { UnderstudyError } from './errors.js';

export type Ordering = 'before' | 'equal' | 'after' | 'incomparable';

/** A log position. Positions of different kinds or timelines are `incomparable`, never guessed at. */
export interface Position {
  readonly kind: 'lsn';
  readonly value: bigint;
}

export function lsn(value: bigint): Position {
  return { kind: 'lsn', value };
}

export function compare(a: Position, b: Position): Ordering {
  if (a.kind !== b.kind) return 'incomparable';
  return a.value < b.value ? 'before' : a.value > b.value ? 'after' : 'equal';
}

const LSN_PATTERN = /^([0-9A-Fa-f]{1,8})\/([0-9A-Fa-f]{1,8})$/;

/** Reads the server's `X/Y` form. Throws `protocol-violation` on anything else. */
export function parseLsn(text: string): bigint {
  const match = LSN_PATTERN.exec(text);
  if (match === null) throw new UnderstudyError('protocol-violation', `not a log sequence number: ${text}`);
  return (BigInt(`0x${match[1]}`) << 32n) | BigInt(`0x${match[2]}`);
}

export function formatLsn(value: bigint): string {
  return `${(value >> 32n).toString(16).toUpperCase()}/${(value & 0xffffffffn).toString(16).toUpperCase()}`;
}
