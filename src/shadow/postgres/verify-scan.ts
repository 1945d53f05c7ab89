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
  { table, authoritative, follower, signal }: Comparison,
  statement: (form: TableInfo, side: VerifySide) => Statement,
): Promise<[readonly TextRow[], readonly TextRow[]]> {
  return Promise.all([
    authoritative.query(statement(authoritative.form(table), authoritative), signal),
    follower.query(statement(follower.form(table), follower), signal),
  ]);
}

async function* scanRanges(
  comparison: Comparison,
  access: KeyAccess,
): AsyncGenerator<ScanStep, void, undefined> {
  const { table, hash, bucketRows, authoritative, signal } = comparison;
  const borderAfter = async (after: readonly string[] | null): Promise<readonly string[] | null> => {
    const statement = rangeBoundarySql(
      authoritative.form(table),
      authoritative.access(table, access),
      { after, upTo: null },
      bucketRows,
    );
    return keyOf((await authoritative.query(statement, signal))[0]);
  };
  let after: readonly string[] | null = null;
  let upTo = await borderAfter(null);
  for (;;) {
    const range: KeyRange = { after, upTo };
    // The next border is asked for while the follower is still hashing this range.
    const [digests, next]: [[readonly TextRow[], readonly TextRow[]], readonly string[] | null] =
      await Promise.all([
        onBoth(comparison, (form, side) => rangeDigestSql(form, side.access(table, access), range, hash)),
        upTo === null ? null : borderAfter(upTo),
      ]);
    const compared = compareDigests(...digests);
    const rows = compared.rows;
    if (compared.differing.size === 0) yield { rows, suspects: [] };
    else yield* lookIntoRange(comparison, access, range, compared);
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
  compared: ComparedDigests,
): AsyncGenerator<ScanStep, void, undefined> {
  const { table, hash, follower, bucketRows, signal } = comparison;
  const parts = [...compared.differing.keys()];
  let { after } = range;
  let remaining = compared.followerRows;
  let { rows } = compared;
  for (;;) {
    const rest: KeyRange = { after, upTo: range.upTo };
    const border: readonly string[] | null =
      remaining <= FETCHED_ROWS_MAX
        ? null
        : keyOf(
            (
              await follower.query(
                rangeBoundarySql(follower.form(table), follower.access(table, access), rest, bucketRows),
                signal,
              )
            )[0],
          );
    const piece: KeyRange = { after, upTo: border ?? range.upTo };
    const fetched = await onBoth(comparison, (form, side) =>
      rangeRowsSql(form, side.access(table, access), piece, parts, hash),
    );
    yield { rows, suspects: suspectsOf(...fetched) };
    rows = 0;
    if (border === null) return;
    after = border;
    remaining -= bucketRows;
  }
}

function keyOf(row: TextRow | undefined): readonly string[] | null {
  return row === undefined ? null : row.map((part) => part ?? '');
}

interface ComparedDigests {
  readonly rows: number;
  readonly followerRows: number;
  /** Buckets, or parts of a range, that differ, with the larger of the two sides' row counts. */
  readonly differing: ReadonlyMap<string, number>;
  /** Rows of the largest bucket on either side. */
  readonly largest: number;
}

/** Compares [bucket, count, sum] of both sides. */
function compareDigests(authoritative: readonly TextRow[], follower: readonly TextRow[]): ComparedDigests {
  const theirs = new Map(
    follower.map(([bucket, rows, sum]) => [bucket ?? '', { rows: Number(rows), sum }] as const),
  );
  const differing = new Map<string, number>();
  let rows = 0;
  let followerRows = 0;
  let largest = 0;
  for (const { rows: count } of theirs.values()) {
    followerRows += count;
    largest = Math.max(largest, count);
  }
  for (const [name, text, sum] of authoritative) {
    const bucket = name ?? '';
    const count = Number(text);
    rows += count;
    largest = Math.max(largest, count);
    const their = theirs.get(bucket);
    theirs.delete(bucket);
    if (their?.rows !== count || their.sum !== sum) {
      differing.set(bucket, Math.max(count, their?.rows ?? 0));
    }
  }
  for (const [bucket, their] of theirs) differing.set(bucket, their.rows);
  return { rows, followerRows, differing, largest };
}

async function* scanBuckets(comparison: Comparison): AsyncGenerator<ScanStep, void, undefined> {
  const { table, hash } = comparison;
  const pass = async (count: number): Promise<ComparedDigests> =>
    compareDigests(...(await onBoth(comparison, (form) => bucketDigestsSql(form, count, hash))));
  let buckets = bucketsFor(table.rowsEstimated);
  let digests = await pass(buckets);
  const finer = bucketsFor(digests.rows);
  if (digests.differing.size > 0 && digests.largest > 4 * ROWS_PER_BUCKET && finer > buckets) {
    // The estimate was far off: finer buckets make what must be fetched small again.
    buckets = finer;
    digests = await pass(buckets);
  }
  yield { rows: digests.rows, suspects: [] };
  let { differing } = digests;
  for (let passes = 2; passes <= PASSES_MAX && differing.size > FEW_BUCKETS; passes += 1) {
    const again = await pass(buckets);
    const both = new Map([...differing].filter(([bucket]) => again.differing.has(bucket)));
    const shrunk = both.size * 2 <= differing.size;
    differing = both;
    if (!shrunk) break;
  }
  for (const group of grouped(differing)) {
    const fetched = await onBoth(comparison, (form) => bucketRowsSql(form, buckets, group, hash));
    yield { rows: 0, suspects: suspectsOf(...fetched) };
  }
}

function bucketsFor(rows: number): number {
  const wanted = Math.max(BUCKETS_MIN, Math.min(BUCKETS_MAX, rows / ROWS_PER_BUCKET));
  return 2 ** Math.floor(Math.log2(wanted));
}

/** Buckets to fetch together, each group within {@link FETCHED_ROWS_MAX} rows where a single bucket allows it. */
function* grouped(buckets: ReadonlyMap<string, number>): Generator<readonly string[], void, undefined> {
  let group: string[] = [];
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
