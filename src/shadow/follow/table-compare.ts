/**
 * Compares one table's two copies for a follower, and names what differs: the same scan as a verification's, whose
 * suspects are not looked at again but simply read anew and written.
 */
import type { ApplyTable, Key } from '../postgres/apply-table.js';
import type { Session } from '../postgres/statement.js';
import { scan, type Comparison } from '../postgres/verify-scan.js';
import { VerifySide } from '../postgres/verify-side.js';
import type { HashOptions } from '../postgres/verify-sql.js';

export interface ComparePair {
  readonly source: VerifySide;
  readonly destination: VerifySide;
  readonly hash: HashOptions;
}

/** Two control connections, used by nobody else meanwhile. */
export async function comparePair(source: Session, destination: Session): Promise<ComparePair> {
  const pair = {
    source: new VerifySide(source.client, 'source'),
    destination: new VerifySide(destination.client, 'destination'),
  };
  await Promise.all([pair.source.restrain(), pair.destination.restrain()]);
  const [ours, theirs] = await Promise.all([pair.source.encoding(), pair.destination.encoding()]);
  return { ...pair, hash: { toUtf8: ours !== theirs } };
}

export interface CompareStep {
  readonly rows: number;
  /** Keys whose rows differ; of a table without key, anything at all where some do. */
  readonly suspects: readonly Key[];
}

const BUCKET_ROWS = 10_000;

export async function* compareTable(
  pair: ComparePair,
  table: ApplyTable,
  signal: AbortSignal,
): AsyncGenerator<CompareStep, void, undefined> {
  // A key that the copy can't use is none here either.
  const info = table.key === null ? { ...table.info, key: null } : table.info;
  const comparison: Comparison = {
    table: info,
    authoritative: pair.source,
    follower: pair.destination,
    hash: pair.hash,
    authoritativeAccess: await pair.source.keyAccess(info, signal),
    followerAccess: await pair.destination.keyAccess(info, signal),
    bucketRows: BUCKET_ROWS,
    signal,
  };
  for await (const { rows, suspects } of scan(comparison)) yield { rows, suspects };
}
