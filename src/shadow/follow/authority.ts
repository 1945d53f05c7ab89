/**
 * Whether a follower may write to the destination now: read in the very transaction that writes, and held to its end.
 *
 * A stream reads from the log who leads; a follower has no log, so it asks the journal. It may write while the source
 * leads, and no cutover is past its catch-up: from there on the destination must stay what was compared.
 */
import { run, type Session } from '../postgres/statement.js';

export interface Authority {
  /** suspended: a switch is past its catch-up, nothing may be written until it is over. follows: the destination leads. */
  readonly kind: 'leads' | 'suspended' | 'follows';
  readonly epoch: number;
  /** A cutover or a rollback is open, in whatever state. */
  readonly operation: boolean;
}

/** States of an operation in which the source's rows may still come over; in every other one they are settled. */
const WRITABLE_STATES = ['idle', 'preflight', 'holding', 'fencing', 'catching-up', 'done', 'aborted'];

/** The subsets of `subsets` that the source leads and no switch has settled; held so to the transaction's end. */
export async function readWritable(
  destination: Session,
  subsets: ReadonlySet<string>,
): Promise<ReadonlySet<string>> {
  const what = 'asking which side leads';
  const exists = await run(
    destination,
    `SELECT pg_catalog.to_regclass('understudy.operation') IS NOT NULL AS found`,
    { what },
  );
  if (exists.rows[0]?.['found'] !== 't') return subsets;
  const { rows } = await run(
    destination,
    {
      text: `SELECT r.subset, r.side = 'source' AND NOT EXISTS (SELECT FROM understudy.operation o
            WHERE o.subset = r.subset AND o.kind = 'cutover' AND o.state <> ALL ($1::text[])) AS writable
        FROM understudy.route r ORDER BY r.subset FOR SHARE OF r`,
      values: [WRITABLE_STATES],
    },
    { what },
  );
  const refused = new Set(rows.flatMap((row) => (row['writable'] === 't' ? [] : [row['subset']])));
  return new Set([...subsets].filter((subset) => !refused.has(subset)));
}

/**
 * In the caller's transaction: what it finds stays so until that ends. Without a journal the source leads. Where there
 * are several subsets, the source counts as the leader only while it leads all of them.
 */
export async function readAuthority(destination: Session, lock: boolean): Promise<Authority> {
  const what = 'asking which side leads';
  const exists = await run(
    destination,
    `SELECT pg_catalog.to_regclass('understudy.operation') IS NOT NULL AS found`,
    { what },
  );
  if (exists.rows[0]?.['found'] !== 't') return { kind: 'leads', epoch: 0, operation: false };
  const { rows } = await run(
    destination,
    {
      text: `SELECT side, epoch, EXISTS (SELECT FROM understudy.operation o
            WHERE o.subset = r.subset AND o.kind = 'cutover' AND o.state <> ALL ($1::text[])) AS busy,
          EXISTS (SELECT FROM understudy.operation o WHERE o.subset = r.subset
            AND o.state NOT IN ('done', 'aborted')) AS operation
        FROM understudy.route r ORDER BY subset${lock ? ' FOR SHARE' : ''}`,
      values: [WRITABLE_STATES],
    },
    { what },
  );
  const epoch = Math.max(0, ...rows.map((row) => Number(row['epoch'])));
  const operation = rows.some((row) => row['operation'] === 't');
  if (rows.some((row) => row['side'] === 'destination')) return { kind: 'follows', epoch, operation };
  return { kind: rows.some((row) => row['busy'] === 't') ? 'suspended' : 'leads', epoch, operation };
}
