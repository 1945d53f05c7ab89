/**
 * Whether a snapshot sees the transactions that the stream has already delivered.
 *
 * PostgreSQL logs a commit before it makes it visible, long before under synchronous replication. A chunk read in
 * between would hold the row as it was before a change that was applied already, and the stale row would win.
 * A chunk is therefore only written if its snapshot sees every transaction that committed before its `low` mark.
 */
import { UnderstudyError } from '../../core/errors.js';

/** As `pg_current_snapshot()` prints it: `xmin:xmax:xip,…`, with 64-bit transaction ids. */
export interface Snapshot {
  /** Every lower id has ended. */
  readonly xmin: bigint;
  /** This id and every higher one had not ended. */
  readonly xmax: bigint;
  /** Ids between the two that had not ended. */
  readonly inProgress: ReadonlySet<bigint>;
}

export function parseSnapshot(text: string): Snapshot {
  const match = /^(\d+):(\d+):([\d,]*)$/.exec(text);
  if (match?.[1] === undefined || match[2] === undefined) {
    throw new UnderstudyError('protocol-violation', 'not a snapshot');
  }
  const list = match[3] === undefined || match[3] === '' ? [] : match[3].split(',');
  return { xmin: BigInt(match[1]), xmax: BigInt(match[2]), inProgress: new Set(list.map(BigInt)) };
}

const XID_SPAN = 1n << 32n;

/** The stream carries the low half of an id; the id meant is the one nearest to the snapshot. */
export function fullXid(xid: number, near: bigint): bigint {
  const candidate = (near / XID_SPAN) * XID_SPAN + BigInt(xid);
  if (candidate - near > XID_SPAN / 2n) return candidate - XID_SPAN;
  if (near - candidate > XID_SPAN / 2n) return candidate + XID_SPAN;
  return candidate;
}

export function sees(snapshot: Snapshot, xid: number): boolean {
  const full = fullXid(xid, snapshot.xmax);
  if (full < snapshot.xmin) return true;
  return full < snapshot.xmax && !snapshot.inProgress.has(full);
}

/** Transactions that the stream delivered and that no snapshot was yet seen to include. */
export class DeliveredTransactions {
  readonly #unseen = new Set<number>();

  delivered(xid: number): void {
    this.#unseen.add(xid);
  }

  get unseen(): readonly number[] {
    return [...this.#unseen];
  }

  seenBy(snapshot: Snapshot): boolean {
    for (const xid of this.#unseen) if (!sees(snapshot, xid)) return false;
    return true;
  }

  /** Forgets what all of these snapshots see. They must include the oldest one still to be checked. */
  forget(snapshots: readonly Snapshot[]): void {
    if (snapshots.length === 0) return;
    for (const xid of this.#unseen) {
      if (snapshots.every((snapshot) => sees(snapshot, xid))) this.#unseen.delete(xid);
    }
  }

  clear(): void {
    this.#unseen.clear();
  }
}
