/**
 * Compares two copies of the same tables while both may be in use, and names the rows that differ.
 *
 * The happy path of a table:
 * 1. scan: both sides hash their rows in the database, range by range or bucket by bucket (`verify-scan.ts`);
 * 2. where digests differ, keys and hashes of that part are fetched and joined here: the suspects;
 * 3. re-check: a suspect counts only if it differs while at rest (`verify-recheck.ts`).
 *
 * Only hashes and keys leave the databases, never other values.
 */
import type pg from 'pg';
import type { RowDifference, Side, TableVerdict, VerifyProgress } from '../../core/ports.js';
import { tableKey, type TableInfo } from './table.js';
import {
  recheck,
  type ConfirmedDifference,
  type ReadUnits,
  type SampleUnits,
  type UnitId,
} from './verify-recheck.js';
import { scan, type Comparison } from './verify-scan.js';
import { VerifySide, abortable, type TableForm } from './verify-side.js';
import {
  columnNamed,
  copiesByHashSql,
  rowsByKeyScript,
  rowsByKeySql,
  sampleScript,
  type HashOptions,
  type KeyAccess,
} from './verify-sql.js';

/** Two connections made by `connectControl`, used by nobody else meanwhile. */
export interface VerifySides {
  readonly authoritative: pg.Client;
  readonly follower: pg.Client;
}

export interface VerifyTablesOptions {
  /** Emits a fresh mark on the authoritative side and resolves with its position once the follower has committed it. */
  readonly settle: (signal: AbortSignal) => Promise<string>;
  /** Stops between and within statements. A statement then still runs on the connections: end them. */
  readonly signal: AbortSignal;
  readonly onProgress?: (progress: VerifyProgress) => void;
  /** Which server the authoritative connection leads to, for error codes. Default `source`. */
  readonly authoritativeSide?: Side;
  /** Told of confirmed differences, but for rows still changing, as they are found. */
  readonly onConfirmed?: (table: TableInfo, ids: readonly UnitId[]) => void;
  /** A table is compared to its end. */
  readonly onVerdict?: (verdict: TableVerdict) => void;
  /** Called behind each part of a table; the comparison goes on once it resolves. */
  readonly rest?: (() => Promise<void>) | undefined;
  /** Rows hashed by one statement where the key can be cut into ranges. Default 10,000. */
  readonly bucketRows?: number;
  /** How a side has a table, where not as the source does. */
  readonly form?: TableForm;
  /** How often a differing row is looked at again before it counts as still changing. Default 12. */
  readonly recheckRoundsMax?: number;
}

export interface VerifyTablesResult {
  /** Rows of the authoritative side. */
  readonly rows: number;
  readonly mismatches: number;
  readonly verdicts: readonly TableVerdict[];
  /** Position of the last settle: what is equal, or differs, did so there or later. */
  readonly position: string;
}

const BUCKET_ROWS = 10_000;
const RECHECK_ROUNDS_MAX = 12;
/** Suspects re-checked together. Bounds memory, and spreads the cost of settling. */
const SUSPECTS_MAX = 5_000;
const DIFFERING_KEYS_MAX = 100;
/** A table with so many confirmed mismatches is not searched further: its count is then a lower bound. */
const MISMATCHES_MAX = 10_000;
/** Times a burst reads the rows that are written all the time. */
const SAMPLES_PER_BURST = 16;
/** Keys looked up by one statement. */
const KEYS_PER_STATEMENT = 1_000;
/** Keys looked up by one message of several statements. */
const KEYS_PER_SCRIPT = 10_000;

/**
 * Compares `tables` (partition roots are skipped: they hold no rows, their leaves are compared). Tables exist on both
 * sides under the same names, with the same columns in any order.
 *
 * A verdict's `mismatches` counts rows; in a table without key, missing or superfluous copies.
 * Throws `source-query-failed` / `destination-query-failed` where a statement is refused (a missing table, row
 * security without the right to bypass it), `…-unreachable` where a connection is lost, the signal's reason, or what
 * `settle` throws.
 */
export async function verifyTables(
  sides: VerifySides,
  tables: readonly TableInfo[],
  options: VerifyTablesOptions,
): Promise<VerifyTablesResult> {
  const { signal } = options;
  const authoritativeSide = options.authoritativeSide ?? 'source';
  const authoritative = new VerifySide(sides.authoritative, authoritativeSide, options.form);
  const follower = new VerifySide(sides.follower, otherSide(authoritativeSide), options.form);
  await Promise.all([authoritative.restrain(signal), follower.restrain(signal)]);
  const hash = await hashOptions(authoritative, follower, sides, signal);
  let position = '';
  const settle = async (): Promise<void> => {
    position = await abortable(options.settle(signal), signal);
  };
  await settle();

  const withRows = tables.filter((table) => table.kind !== 'partitioned');
  const verdicts: TableVerdict[] = [];
  let rowsBefore = 0;
  for (const [index, table] of withRows.entries()) {
    const comparison: Comparison = {
      table,
      authoritative,
      follower,
      hash,
      authoritativeAccess: await authoritative.keyAccess(table, signal),
      followerAccess: await follower.keyAccess(table, signal),
      bucketRows: options.bucketRows ?? BUCKET_ROWS,
      signal,
    };
    const onRows = (rows: number): void =>
      options.onProgress?.({
        table: tableKey(table),
        tablesDone: index,
        tablesTotal: withRows.length,
        rows: rowsBefore + rows,
      });
    const roundsMax = options.recheckRoundsMax ?? RECHECK_ROUNDS_MAX;
    const verdict = await compareTable(comparison, {
      settle,
      roundsMax,
      onRows,
      onConfirmed: (ids) => options.onConfirmed?.(table, ids),
      rest: options.rest,
    });
    options.onVerdict?.(verdict);
    rowsBefore += verdict.rows;
    verdicts.push(verdict);
  }
  options.onProgress?.({
    table: '',
    tablesDone: withRows.length,
    tablesTotal: withRows.length,
    rows: rowsBefore,
  });
  const mismatches = verdicts.reduce((total, verdict) => total + verdict.mismatches, 0);
  return { rows: rowsBefore, mismatches, verdicts, position };
}

/** Rows to be looked up: `keys` hold the values of `table.key`, as text, in its order. The table must have a key. */
export interface KeyLookup {
  readonly table: TableInfo;
  readonly keys: readonly (readonly string[])[];
}

/**
 * Which of these rows differ; a key's values are joined by commas. Assumes that nothing is in flight (behind a fence),
 * where clients wait: one round trip per side and 10,000 keys, whatever the number of tables. The first call on two
 * connections costs one more, which a call without lookups takes ahead. Throws as {@link verifyTables}.
 */
export async function verifyKeys(
  sides: VerifySides,
  lookups: readonly KeyLookup[],
  authoritativeSide: Side = 'source',
  form?: TableForm,
): Promise<readonly { readonly table: string; readonly key: string }[]> {
  const authoritative = new VerifySide(sides.authoritative, authoritativeSide, form);
  const follower = new VerifySide(sides.follower, otherSide(authoritativeSide), form);
  const hash = await hashOptions(authoritative, follower, sides);
  const [ours, theirs] = await Promise.all(
    [authoritative, follower].map((side) => readKeys(side, lookups, hash)),
  );
  return lookups.flatMap(({ table, keys }, at) =>
    keys
      .filter((_, index) => ours?.[at]?.[index] !== theirs?.[at]?.[index])
      .map((key) => ({ table: tableKey(table), key: displayKey(key) })),
  );
}

/** The hashes of the rows with these keys, lookup by lookup; undefined where there is no such row. */
async function readKeys(
  side: VerifySide,
  lookups: readonly KeyLookup[],
  hash: HashOptions,
): Promise<readonly (readonly (string | undefined)[])[]> {
  const found = lookups.map(({ keys }) => Array.from<string | undefined>({ length: keys.length }));
  const parts: KeyPart[] = [];
  for (const [lookup, { table, keys }] of lookups.entries()) {
    if (keys.length === 0) continue;
    const access = await lookupAccess(side, table);
    // Without an index each statement is a scan of the table: then one must do for all.
    const perStatement = access === null ? keys.length : KEYS_PER_STATEMENT;
    for (let start = 0; start < keys.length; start += perStatement) {
      const sql = rowsByKeyScript(
        side.form(table),
        side.access(table, access),
        keys.slice(start, start + perStatement),
        hash,
      );
      parts.push({ lookup, start, keys: Math.min(perStatement, keys.length - start), sql });
    }
  }
  for (const batch of batches(parts, KEYS_PER_SCRIPT)) {
    const answers = await side.script(batch.map(({ sql }) => sql).join(';'));
    for (const [index, { lookup, start }] of batch.entries()) {
      const hashes = found[lookup] ?? [];
      for (const [number, value] of answers[index] ?? [])
        hashes[start + Number(number) - 1] = value ?? undefined;
    }
  }
  return found;
}

interface KeyPart {
  readonly lookup: number;
  readonly start: number;
  readonly keys: number;
  readonly sql: string;
}

function batches(parts: readonly KeyPart[], keysMax: number): readonly (readonly KeyPart[])[] {
  const all: KeyPart[][] = [];
  let room = 0;
  for (const part of parts) {
    const last = all.at(-1);
    if (last === undefined || part.keys > room) {
      all.push([part]);
      room = keysMax - part.keys;
    } else {
      last.push(part);
      room -= part.keys;
    }
  }
  return all;
}

function otherSide(side: Side): Side {
  return side === 'source' ? 'destination' : 'source';
}

function displayKey(id: UnitId): string {
  return id.join(',');
}

/** Pairs of connections that were looked at already, so that a check behind the fence costs one round trip. */
const knownPairs = new WeakMap<pg.Client, WeakMap<pg.Client, HashOptions>>();

async function hashOptions(
  authoritative: VerifySide,
  follower: VerifySide,
  sides: VerifySides,
  signal?: AbortSignal,
): Promise<HashOptions> {
  const known = knownPairs.get(sides.authoritative)?.get(sides.follower);
  if (known !== undefined && signal === undefined) return known;
  const [ours, theirs] = await Promise.all([authoritative.encoding(signal), follower.encoding(signal)]);
  const options: HashOptions = { toUtf8: ours !== theirs };
  const pairs = knownPairs.get(sides.authoritative) ?? new WeakMap<pg.Client, HashOptions>();
  knownPairs.set(sides.authoritative, pairs);
  pairs.set(sides.follower, options);
  return options;
}

/** Built-in types are found by `=` and the identity's index; another type's equality must be looked up. */
async function lookupAccess(side: VerifySide, table: TableInfo): Promise<KeyAccess | null> {
  const key = table.key ?? [];
  if (key.every((name) => !columnNamed(table, name).type.includes('.'))) return BUILT_IN_EQUALITY;
  return (await side.keyAccess(table))[0] ?? null;
}

const BUILT_IN_EQUALITY: KeyAccess = { columns: [], operators: [], ascending: true };

interface CompareOptions {
  readonly settle: () => Promise<void>;
  readonly roundsMax: number;
  readonly onRows: (rows: number) => void;
  readonly onConfirmed: (ids: readonly UnitId[]) => void;
  readonly rest: (() => Promise<void>) | undefined;
}

async function compareTable(comparison: Comparison, options: CompareOptions): Promise<TableVerdict> {
  const { table, signal } = comparison;
  const differingKeys: { key: string; difference: RowDifference }[] = [];
  let rows = 0;
  let mismatches = 0;
  const suspects: UnitId[] = [];
  const decide = async (): Promise<void> => {
    const batch = suspects.splice(0, SUSPECTS_MAX);
    if (mismatches >= MISMATCHES_MAX) return;
    const confirmed = await recheck(batch, {
      ...readers(comparison),
      settle: options.settle,
      roundsMax: options.roundsMax,
      signal,
    });
    const definite = confirmed.filter(({ difference }) => difference !== 'still-changing');
    if (definite.length > 0) options.onConfirmed(definite.map(({ id }) => id));
    for (const found of confirmed) {
      const copies = table.key === null ? differingCopies(found) : 1;
      mismatches += copies;
      if (differingKeys.length < DIFFERING_KEYS_MAX) {
        differingKeys.push({ key: displayKey(found.id), difference: found.difference });
      }
    }
  };
  options.onRows(0);
  for await (const step of scan(comparison)) {
    rows += step.rows;
    for (const suspect of step.suspects) suspects.push(suspect);
    while (suspects.length >= SUSPECTS_MAX) await decide();
    options.onRows(rows);
    await options.rest?.();
  }
  if (suspects.length > 0) await decide();
  return { table: tableKey(table), rows, mismatches, differingKeys };
}

function differingCopies(found: ConfirmedDifference): number {
  return Math.max(1, Math.abs(Number(found.authoritative ?? 0) - Number(found.follower ?? 0)));
}

interface Readers {
  readonly readAuthoritative: ReadUnits;
  readonly readFollower: ReadUnits;
  readonly sampleAuthoritative: SampleUnits | null;
}

function readers(comparison: Comparison): Readers {
  const { table, authoritative, follower, hash, signal } = comparison;
  if (table.key === null) {
    return {
      readAuthoritative: readCopies(authoritative, table, hash, signal),
      readFollower: readCopies(follower, table, hash, signal),
      sampleAuthoritative: null,
    };
  }
  const authoritativeAccess = comparison.authoritativeAccess[0] ?? null;
  const followerAccess = comparison.followerAccess[0] ?? null;
  return {
    readAuthoritative: readByKey(authoritative, table, authoritativeAccess, hash, signal),
    readFollower: readByKey(follower, table, followerAccess, hash, signal),
    sampleAuthoritative:
      authoritativeAccess === null
        ? () => Promise.resolve([])
        : sampleByKey(authoritative, table, authoritativeAccess, hash, signal),
  };
}

function readByKey(
  side: VerifySide,
  table: TableInfo,
  access: KeyAccess | null,
  hash: HashOptions,
  signal?: AbortSignal,
): ReadUnits {
  return async (ids) => {
    const hashes: (string | undefined)[] = Array.from({ length: ids.length });
    // Without an index each statement is a scan of the table: then one must do for all.
    const perStatement = access === null ? ids.length : KEYS_PER_STATEMENT;
    for (let start = 0; start < ids.length; start += perStatement) {
      const batch = ids.slice(start, start + perStatement);
      const found = await side.query(
        rowsByKeySql(side.form(table), side.access(table, access), batch, hash),
        signal,
      );
      for (const [number, value] of found) hashes[start + Number(number) - 1] = value ?? undefined;
    }
    return hashes;
  };
}

function sampleByKey(
  side: VerifySide,
  table: TableInfo,
  access: KeyAccess,
  hash: HashOptions,
  signal: AbortSignal,
): SampleUnits {
  return async (ids) => {
    const seen = ids.map(() => new Set<string | undefined>());
    const script = sampleScript(side.form(table), side.access(table, access), ids, hash, SAMPLES_PER_BURST);
    for (const rows of await side.script(script, signal)) {
      const found = new Map(rows.map(([number, value]) => [Number(number), value ?? undefined]));
      seen.forEach((values, index) => values.add(found.get(index + 1)));
    }
    return seen;
  };
}

function readCopies(side: VerifySide, table: TableInfo, hash: HashOptions, signal: AbortSignal): ReadUnits {
  return async (ids) => {
    const wanted = ids.map((id) => id[0] ?? '');
    const found = new Map(
      (await side.query(copiesByHashSql(side.form(table), wanted, hash), signal)).map(([value, copies]) => [
        value,
        copies ?? undefined,
      ]),
    );
    return wanted.map((value) => found.get(value));
  };
}
