/**
 * Finds what may differ between the two copies of one table, reading each side as few times as possible.
 *
 * Two ways:
 * 1. By key ranges, where the key's types order alike on every server and both sides have an index of the same
 *    columns. Borders come from the authoritative side; the first range is open below and the last above, so that
 *    extra rows beyond either end are found. Statements stay short, so no old snapshot holds back a vacuum.
 * 2. By buckets of the key's hash, else: text keys sort differently under other collations (and an enum's order is
 *    the catalog's), so a range would hold different rows. Without a key, by the rows' own hash, as a multiset.
 *    A bucket equal in any pass is equal; only those that differ in every pass are looked into.
 *
 * What is found under live traffic is a suspicion; `verify-recheck.ts` decides.
 */
import type { TableInfo } from './table.js';
import type { UnitId } from './verify-recheck.js';
import type { TextRow, VerifySide } from './verify-side.js';
import {
  BUCKETS_MAX,
  bucketDigestsSql,
  bucketRowsSql,
  ordersAlike,
  rangeBoundarySql,
  rangeDigestSql,
  rangeRowsSql,
  type HashOptions,
  type KeyAccess,
  type KeyRange,
  type Statement,
} from './verify-sql.js';

export interface Comparison {
  readonly table: TableInfo;
  readonly authoritative: VerifySide;
  readonly follower: VerifySide;
  readonly hash: HashOptions;
  /** Indexes that serve the key, per side; empty without one. */
  readonly authoritativeAccess: readonly KeyAccess[];
  readonly followerAccess: readonly KeyAccess[];
  /** Rows per range. */
  readonly bucketRows: number;
  readonly signal: AbortSignal;
}

export interface ScanStep {
  /** Rows of the authoritative side that this step covered. */
  readonly rows: number;
  readonly suspects: readonly UnitId[];
}

/** Rows fetched at once to find which of a bucket differ. Bounds memory: ~100 bytes each. */
const FETCHED_ROWS_MAX = 100_000;
const ROWS_PER_BUCKET = 1_000;
const BUCKETS_MIN = 256;
const PASSES_MAX = 3;
/** So few differing buckets are looked into at once instead of passing over the table again. */
const FEW_BUCKETS = 8;

export function scan(comparison: Comparison): AsyncGenerator<ScanStep, void, undefined> {
  const access = rangeAccess(comparison);
  return access === null ? scanBuckets(comparison) : scanRanges(comparison, access);
}

/** The index to walk, if the key can be walked in ranges on both sides. */
export function rangeAccess(comparison: Comparison): KeyAccess | null {
  const { table, authoritativeAccess, followerAccess } = comparison;
  if (table.key === null || !ordersAlike(table, table.key)) return null;
  const walkable = (access: KeyAccess): boolean => access.ascending;
  const sameColumns = (a: KeyAccess, b: KeyAccess): boolean =>
    a.columns.every((column, index) => column === b.columns[index]);
  return (
    authoritativeAccess
      .filter(walkable)
      .find((a) => followerAccess.filter(walkable).some((b) => sameColumns(a, b))) ?? null
  );
}

function onBoth(
  comparison: Comparison,
  statement: Statement,
): Promise<[readonly TextRow[], readonly TextRow[]]> {
  return Promise.all([
    comparison.authoritative.query(statement, comparison.signal),
    comparison.follower.query(statement, comparison.signal),
  ]);
}

async function* scanRanges(
  comparison: Comparison,
  access: KeyAccess,
): AsyncGenerator<ScanStep, void, undefined> {
  const { table, hash, bucketRows, authoritative, signal } = comparison;
  const borderAfter = async (after: readonly string[] | null): Promise<readonly string[] | null> => {
    const statement = rangeBoundarySql(table, access, { after, upTo: null }, bucketRows);
    return keyOf((await authoritative.query(statement, signal))[0]);
  };
  let after: readonly string[] | null = null;
  let upTo = await borderAfter(null);
  for (;;) {
    const range: KeyRange = { after, upTo };
    // The next border is asked for while the follower is still hashing this range.
    const [digests, next]: [[readonly TextRow[], readonly TextRow[]], readonly string[] | null] =
      await Promise.all([
        onBoth(comparison, rangeDigestSql(table, access, range, hash)),
        upTo === null ? null : borderAfter(upTo),
      ]);
    const [rows, sum] = digests[0][0] ?? [];
    const [followerRows, followerSum] = digests[1][0] ?? [];
    if (rows === followerRows && sum === followerSum) yield { rows: Number(rows), suspects: [] };
    else yield* lookIntoRange(comparison, access, range, Number(rows), Number(followerRows));
    if (upTo === null) return;
    after = upTo;
    upTo = next;
  }
}

/** Fetches keys and hashes of a differing range, in pieces where the follower holds far more rows than it should. */
async function* lookIntoRange(
  comparison: Comparison,
  access: KeyAccess,
  range: KeyRange,
  rows: number,
  followerRows: number,
): AsyncGenerator<ScanStep, void, undefined> {
  const { table, hash, follower, bucketRows, signal } = comparison;
  let { after } = range;
  let remaining = followerRows;
  let counted = rows;
  for (;;) {
    const rest: KeyRange = { after, upTo: range.upTo };
    const border: readonly string[] | null =
      remaining <= FETCHED_ROWS_MAX
        ? null
        : keyOf((await follower.query(rangeBoundarySql(table, access, rest, bucketRows), signal))[0]);
    const piece: KeyRange = { after, upTo: border ?? range.upTo };
    const fetched = await onBoth(comparison, rangeRowsSql(table, access, piece, hash));
    yield { rows: counted, suspects: suspectsOf(...fetched) };
    counted = 0;
    if (border === null) return;
    after = border;
    remaining -= bucketRows;
  }
}

function keyOf(row: TextRow | undefined): readonly string[] | null {
  return row === undefined ? null : row.map((part) => part ?? '');
}

interface BucketDigests {
  readonly buckets: number;
  readonly rows: number;
  /** Differing buckets and the larger of the two sides' row counts. */
  readonly differing: ReadonlyMap<number, number>;
  readonly largest: number;
}

async function* scanBuckets(comparison: Comparison): AsyncGenerator<ScanStep, void, undefined> {
  const { table } = comparison;
  let digests = await compareBuckets(comparison, bucketsFor(table.rowsEstimated));
  if (digests.differing.size > 0 && digests.largest > 4 * ROWS_PER_BUCKET) {
    // The estimate was far off: finer buckets make what must be fetched small again.
    const finer = bucketsFor(digests.rows);
    if (finer > digests.buckets) digests = await compareBuckets(comparison, finer);
  }
  let differing = digests.differing;
  for (let pass = 2; pass <= PASSES_MAX && differing.size > FEW_BUCKETS; pass += 1) {
    const again = await compareBuckets(comparison, digests.buckets);
    const both = new Map([...differing].filter(([bucket]) => again.differing.has(bucket)));
    const shrunk = both.size * 2 <= differing.size;
    differing = both;
    if (!shrunk) break;
  }
  yield { rows: digests.rows, suspects: [] };
  for (const group of grouped(differing)) {
    const statement = bucketRowsSql(table, digests.buckets, group, comparison.hash);
    yield { rows: 0, suspects: suspectsOf(...(await onBoth(comparison, statement))) };
  }
}

function bucketsFor(rows: number): number {
  const wanted = Math.max(BUCKETS_MIN, Math.min(BUCKETS_MAX, rows / ROWS_PER_BUCKET));
  return 2 ** Math.floor(Math.log2(wanted));
}

async function compareBuckets(comparison: Comparison, buckets: number): Promise<BucketDigests> {
  const [authoritative, follower] = await onBoth(
    comparison,
    bucketDigestsSql(comparison.table, buckets, comparison.hash),
  );
  const theirs = new Map(follower.map(([bucket, rows, sum]) => [bucket, { rows: Number(rows), sum }]));
  const differing = new Map<number, number>();
  let total = 0;
  let largest = 0;
  for (const [bucket, rows, sum] of authoritative) {
    const count = Number(rows);
    total += count;
    const their = theirs.get(bucket ?? null);
    theirs.delete(bucket ?? null);
    largest = Math.max(largest, count, their?.rows ?? 0);
    if (their?.rows !== count || their.sum !== sum) {
      differing.set(Number(bucket), Math.max(count, their?.rows ?? 0));
    }
  }
  for (const [bucket, { rows }] of theirs) {
    largest = Math.max(largest, rows);
    differing.set(Number(bucket), rows);
  }
  return { buckets, rows: total, differing, largest };
}

/** Buckets to fetch together, each group within {@link FETCHED_ROWS_MAX} rows where a single bucket allows it. */
function* grouped(buckets: ReadonlyMap<number, number>): Generator<readonly number[], void, undefined> {
  let group: number[] = [];
  let total = 0;
  for (const [bucket, rows] of buckets) {
    if (group.length > 0 && total + rows > FETCHED_ROWS_MAX) {
      yield group;
      group = [];
      total = 0;
    }
    group.push(bucket);
    total += rows;
  }
  if (group.length > 0) yield group;
}

/** Units whose last column differs between the sides, or that one side lacks. Text never holds a NUL, so it joins. */
function suspectsOf(authoritative: readonly TextRow[], follower: readonly TextRow[]): readonly UnitId[] {
  const theirs = new Map(follower.map((row) => [unitOf(row).join('\0'), row.at(-1)]));
  const suspects: UnitId[] = [];
  for (const row of authoritative) {
    const unit = unitOf(row);
    const joined = unit.join('\0');
    if (theirs.get(joined) !== row.at(-1)) suspects.push(unit);
    theirs.delete(joined);
  }
  for (const joined of theirs.keys()) suspects.push(joined.split('\0'));
  return suspects;
}

function unitOf(row: TextRow): UnitId {
  return row.slice(0, -1).map((part) => part ?? '');
}
