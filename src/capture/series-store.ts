/**
 * The series in the destination. One connection, opened when it is needed and thrown away with any error.
 *
 * A batch is one transaction that first claims its id: of a batch whose COMMIT was answered by silence, a second try
 * finds the id and leaves. Everything is added to what is there (figures summed, decayed weights brought to one
 * instant and summed), so that batches may come from several writers, late, and about the past.
 */
import { randomBytes } from 'node:crypto';
import type pg from 'pg';
import { asUnderstudyError } from '../core/errors.js';
import {
  SERIES_RESOLUTION_MS,
  type CoAccess,
  type HotKeys,
  type SeriesBatch,
  type SeriesInterval,
  type SeriesPoint,
  type SeriesRange,
  type SeriesResolution,
  type SeriesStore,
  type StatementKind,
  type StatementUse,
  type TableSeries,
  type TransactionDurations,
  type Transition,
} from '../core/capture-ports.js';
import {
  INSERT_HOT_KEYS_SQL,
  INSERT_INTERVALS_SQL,
  INSERT_POINTS_SQL,
  INSERT_STATEMENTS_SQL,
  INSERT_TABLES_SQL,
  SERIES_SCHEMA_SQL,
  decayed,
  insertCoAccessSql,
  insertTransactionsSql,
  insertTransitionsSql,
} from './series-schema.js';

export interface SeriesStoreOptions {
  readonly minutesKeptDays: number;
  readonly fiveMinutesKeptDays: number;
  readonly hoursKeptDays: number;
}
export const SERIES_STORE_DEFAULTS = {
  minutesKeptDays: 7,
  fiveMinutesKeptDays: 30,
  hoursKeptDays: 400,
} as const satisfies SeriesStoreOptions;

/** Co-access and transitions are about how the application is written, durations about its weeks. */
const HALF_LIFE_SECONDS = 7 * 86_400;
const TRANSACTIONS_HALF_LIFE_SECONDS = 28 * 86_400;
/** Kept of what has no age to be deleted by. */
const TRANSITIONS_KEPT = 20_000;
const STATEMENTS_KEPT = 20_000;
const PAIRS_KEPT = 200_000;
const DAY_MS = 86_400_000;
/** By then nobody tries to append a batch again. */
const BATCH_IDS_KEPT_MS = 2 * DAY_MS;

type Row = Readonly<Record<string, string | null>>;
const RESOLUTIONS = Object.entries(SERIES_RESOLUTION_MS) as [SeriesResolution, number][];

/** The settings that a connection for the store should have: no statement of it may hang for ever. */
export const SERIES_CONNECTION = {
  purpose: 'series',
  settings: { statement_timeout: '60000', lock_timeout: '20000' },
} as const;

export class PostgresSeriesStore implements SeriesStore {
  readonly #connect: () => Promise<pg.Client>;
  readonly #options: SeriesStoreOptions;
  #client: Promise<pg.Client> | undefined;
  #open: pg.Client | undefined;
  /** One thing after another on the one connection. */
  #queue: Promise<unknown> = Promise.resolve();

  /** `connect` opens a control connection to the destination, with {@link SERIES_CONNECTION}. */
  constructor(connect: () => Promise<pg.Client>, options: SeriesStoreOptions = SERIES_STORE_DEFAULTS) {
    this.#connect = connect;
    this.#options = options;
  }

  append(batch: SeriesBatch, signal?: AbortSignal): Promise<void> {
    return this.#run(async (client) => {
      signal?.throwIfAborted();
      await client.query('BEGIN');
      const claimed = await client.query(
        'INSERT INTO understudy.series_batch (id) VALUES ($1) ON CONFLICT DO NOTHING',
        [batch.id],
      );
      if (claimed.rowCount === 1) await insertBatch(client, batch);
      await client.query('COMMIT');
    });
  }

  /** The installation's secret, made at the first asking. */
  secret(): Promise<Buffer> {
    return this.#run(async (client) => {
      await client.query(
        `INSERT INTO understudy.secret (name, value) VALUES ('keys', $1) ON CONFLICT DO NOTHING`,
        [randomBytes(32).toString('hex')],
      );
      const found = await client.query<Row>(`SELECT value FROM understudy.secret WHERE name = 'keys'`);
      return Buffer.from(found.rows[0]?.['value'] ?? '', 'hex');
    });
  }

  tables(
    resolution: SeriesResolution,
    range: SeriesRange,
    tables?: readonly string[],
  ): Promise<readonly TableSeries[]> {
    return this.#run(async (client) => {
      const found = await client.query<Row>(
        `SELECT t.name, ${epochMs('p.start')} AS start, p.reads, p.writes, p.errors, p.rows_read, p.rows_written,
           p.bytes_to_server, p.bytes_to_client, p.duration_micros
         FROM understudy.series_point p JOIN understudy.series_table t ON t.id = p.table_id
         WHERE p.resolution = $1 AND ${inRange('p.start')} AND ($4::text[] IS NULL OR t.name = ANY ($4::text[]))
         ORDER BY t.name, p.start`,
        [SERIES_RESOLUTION_MS[resolution] / 1000, range.fromMs, range.untilMs, tables ?? null],
      );
      const series = new Map<string, SeriesPoint[]>();
      for (const row of found.rows) {
        const name = row['name'] ?? '';
        const points = series.get(name);
        if (points === undefined) series.set(name, [pointFrom(row)]);
        else points.push(pointFrom(row));
      }
      return [...series].map(([table, points]) => ({ table, points }));
    });
  }

  intervals(resolution: SeriesResolution, range: SeriesRange): Promise<readonly SeriesInterval[]> {
    return this.#run(async (client) => {
      const found = await client.query<Row>(
        `SELECT ${epochMs('start')} AS start, observed_ms, statements, errors, dropped, unparsed, committed, rolled_back
         FROM understudy.series_interval WHERE resolution = $1 AND ${inRange('start')} ORDER BY start`,
        [SERIES_RESOLUTION_MS[resolution] / 1000, range.fromMs, range.untilMs],
      );
      return found.rows.map((row) => ({
        startMs: Number(row['start']),
        observedMs: Number(row['observed_ms']),
        statements: Number(row['statements']),
        errors: Number(row['errors']),
        dropped: Number(row['dropped']),
        unparsed: Number(row['unparsed']),
        committed: Number(row['committed']),
        rolledBack: Number(row['rolled_back']),
      }));
    });
  }

  coAccess(asOfMs: number): Promise<readonly CoAccess[]> {
    return this.#run(async (client) => {
      const found = await client.query<Row>(
        `SELECT LEAST(a.name, b.name) AS a, GREATEST(a.name, b.name) AS b, c.transactions,
           ${asOf('c', HALF_LIFE_SECONDS)} AS weight
         FROM understudy.series_co_access c
         JOIN understudy.series_table a ON a.id = c.a JOIN understudy.series_table b ON b.id = c.b
         ORDER BY 4 DESC, 1, 2`,
        [asOfMs],
      );
      return found.rows.map((row) => ({
        a: row['a'] ?? '',
        b: row['b'] ?? '',
        transactions: Number(row['transactions']),
        weight: Number(row['weight']),
        asOfMs,
      }));
    });
  }

  transitions(asOfMs: number): Promise<readonly Transition[]> {
    return this.#run(async (client) => {
      const found = await client.query<Row>(
        `SELECT "from", "to", ${asOf('t', HALF_LIFE_SECONDS)} AS weight
         FROM understudy.series_transition t ORDER BY 3 DESC, 1, 2`,
        [asOfMs],
      );
      return found.rows.map((row) => ({
        from: row['from'] ?? '',
        to: row['to'] ?? '',
        weight: Number(row['weight']),
        asOfMs,
      }));
    });
  }

  transactionDurations(asOfMs: number): Promise<readonly TransactionDurations[]> {
    return this.#run(async (client) => {
      const found = await client.query<Row>(
        `SELECT hour_of_week, up_to_micros, ${asOf('t', TRANSACTIONS_HALF_LIFE_SECONDS)} AS weight
         FROM understudy.series_transaction t ORDER BY 1, 2`,
        [asOfMs],
      );
      return found.rows.map((row) => ({
        hourOfWeek: Number(row['hour_of_week']),
        upToMicros: Number(row['up_to_micros']),
        weight: Number(row['weight']),
        asOfMs,
      }));
    });
  }

  statements(limit: number): Promise<readonly StatementUse[]> {
    return this.#run(async (client) => {
      const found = await client.query<Row>(
        `SELECT fingerprint, kind, text, reads, writes, executions, errors, rows, duration_micros,
           ${epochMs('first_seen')} AS first_seen, ${epochMs('last_seen')} AS last_seen
         FROM understudy.series_statement ORDER BY duration_micros DESC, fingerprint LIMIT $1`,
        [limit],
      );
      return found.rows.map(statementFrom);
    });
  }

  hotKeys(range: SeriesRange, tables?: readonly string[]): Promise<readonly HotKeys[]> {
    return this.#run(async (client) => {
      const found = await client.query<Row>(
        `SELECT t.name, ${epochMs('h.start')} AS start, h.accesses, h.keys
         FROM understudy.series_hot_keys h JOIN understudy.series_table t ON t.id = h.table_id
         WHERE ${inRange('h.start', 1)} AND ($3::text[] IS NULL OR t.name = ANY ($3::text[]))
         ORDER BY t.name, h.start`,
        [range.fromMs, range.untilMs, tables ?? null],
      );
      return mergeWriters(found.rows);
    });
  }

  prune(nowMs: number): Promise<void> {
    return this.#run(async (client) => {
      const { minutesKeptDays, fiveMinutesKeptDays, hoursKeptDays } = this.#options;
      const days = { minute: minutesKeptDays, 'five-minutes': fiveMinutesKeptDays, hour: hoursKeptDays };
      const before = (keptMs: number): number => nowMs - keptMs;
      for (const [resolution, ms] of RESOLUTIONS) {
        for (const table of ['series_point', 'series_interval']) {
          await client.query(
            `DELETE FROM understudy.${table} WHERE resolution = $1 AND start < pg_catalog.to_timestamp($2 / 1000.0)`,
            [ms / 1000, before(days[resolution] * DAY_MS)],
          );
        }
      }
      const older = 'pg_catalog.to_timestamp($1 / 1000.0)';
      await client.query(`DELETE FROM understudy.series_hot_keys WHERE start < ${older}`, [
        before(fiveMinutesKeptDays * DAY_MS),
      ]);
      await client.query(`DELETE FROM understudy.series_batch WHERE at < ${older}`, [
        before(BATCH_IDS_KEPT_MS),
      ]);
      await client.query(`DELETE FROM understudy.series_statement WHERE last_seen < ${older}`, [
        before(hoursKeptDays * DAY_MS),
      ]);
      await keepTop(client, 'series_statement', 'last_seen DESC, executions DESC', STATEMENTS_KEPT);
      await keepTop(client, 'series_transition', weightOrder(HALF_LIFE_SECONDS), TRANSITIONS_KEPT);
      await keepTop(client, 'series_co_access', weightOrder(HALF_LIFE_SECONDS), PAIRS_KEPT);
    });
  }

  async close(): Promise<void> {
    await this.#queue.catch(() => undefined);
    await this.#drop();
  }

  #run<T>(work: (client: pg.Client) => Promise<T>): Promise<T> {
    const result = this.#queue.then(() => this.#attempt(work));
    this.#queue = result.catch(() => undefined);
    return result;
  }

  async #attempt<T>(work: (client: pg.Client) => Promise<T>): Promise<T> {
    try {
      this.#client ??= this.#prepare();
      return await work(await this.#client);
    } catch (error) {
      await this.#drop();
      throw asUnderstudyError(error, 'destination-unreachable', 'series');
    }
  }

  async #prepare(): Promise<pg.Client> {
    const client = await this.#connect();
    this.#open = client;
    for (const sql of SERIES_SCHEMA_SQL) await client.query(sql);
    return client;
  }

  async #drop(): Promise<void> {
    const client = this.#open;
    this.#open = undefined;
    this.#client = undefined;
    await client?.end().catch(() => undefined);
  }
}

async function insertBatch(client: pg.Client, batch: SeriesBatch): Promise<void> {
  const names = new Set<string>();
  for (const { table } of batch.points) names.add(table);
  for (const { a, b } of batch.coAccess) names.add(a).add(b);
  for (const { table } of batch.hotKeys) names.add(table);
  await client.query(INSERT_TABLES_SQL, [JSON.stringify([...names])]);
  const [points, intervals] = [JSON.stringify(batch.points), JSON.stringify(batch.intervals)];
  for (const [, ms] of RESOLUTIONS) {
    await client.query(INSERT_POINTS_SQL, [points, ms / 1000]);
    await client.query(INSERT_INTERVALS_SQL, [intervals, ms / 1000]);
  }
  const rest: readonly (readonly [string, readonly unknown[]])[] = [
    [insertCoAccessSql(HALF_LIFE_SECONDS), batch.coAccess],
    [insertTransitionsSql(HALF_LIFE_SECONDS), batch.transitions],
    [insertTransactionsSql(TRANSACTIONS_HALF_LIFE_SECONDS), batch.transactionDurations],
    [INSERT_STATEMENTS_SQL, batch.statements],
  ];
  for (const [sql, rows] of rest) if (rows.length > 0) await client.query(sql, [JSON.stringify(rows)]);
  if (batch.hotKeys.length > 0)
    await client.query(INSERT_HOT_KEYS_SQL, [JSON.stringify(batch.hotKeys), batch.writer]);
}

function epochMs(timestamp: string): string {
  return `(pg_catalog.date_part('epoch', ${timestamp}) * 1000)::bigint`;
}

/** `first`: number of the parameter that holds the range's beginning, followed by its end. */
function inRange(column: string, first = 2): string {
  const at = (parameter: number): string => `pg_catalog.to_timestamp($${parameter} / 1000.0)`;
  return `${column} >= ${at(first)} AND ${column} < ${at(first + 1)}`;
}

/** A row's weight as of $1, in ms. */
function asOf(table: string, halfLifeSeconds: number): string {
  return decayed(
    `${table}.weight`,
    `${table}.as_of`,
    'pg_catalog.to_timestamp($1 / 1000.0)',
    halfLifeSeconds,
  );
}

/** Weights of different instants in the order that they have at any common one. */
function weightOrder(halfLifeSeconds: number): string {
  return `pg_catalog.log(2::numeric, GREATEST(weight, 1e-300)::numeric)
    + (pg_catalog.date_part('epoch', as_of) / ${halfLifeSeconds})::numeric DESC`;
}

async function keepTop(client: pg.Client, table: string, order: string, rows: number): Promise<void> {
  await client.query(
    `DELETE FROM understudy.${table} WHERE ctid IN (SELECT ctid FROM understudy.${table} ORDER BY ${order} OFFSET $1)`,
    [rows],
  );
}

function pointFrom(row: Row): SeriesPoint {
  return {
    startMs: Number(row['start']),
    reads: Number(row['reads']),
    writes: Number(row['writes']),
    errors: Number(row['errors']),
    rowsRead: Number(row['rows_read']),
    rowsWritten: Number(row['rows_written']),
    bytesToServer: Number(row['bytes_to_server']),
    bytesToClient: Number(row['bytes_to_client']),
    durationMicros: Number(row['duration_micros']),
  };
}

function statementFrom(row: Row): StatementUse {
  return {
    fingerprint: row['fingerprint'] ?? '',
    kind: (row['kind'] ?? 'unknown') as StatementKind,
    text: row['text'] ?? '',
    reads: JSON.parse(row['reads'] ?? '[]') as readonly string[],
    writes: JSON.parse(row['writes'] ?? '[]') as readonly string[],
    executions: Number(row['executions']),
    errors: Number(row['errors']),
    rows: Number(row['rows']),
    durationMicros: Number(row['duration_micros']),
    firstSeenMs: Number(row['first_seen']),
    lastSeenMs: Number(row['last_seen']),
  };
}

/** Rows in order; those of one table and hour, from several writers, as one. */
function mergeWriters(rows: readonly Row[]): readonly HotKeys[] {
  const merged: HotKeys[] = [];
  for (const row of rows) {
    const table = row['name'] ?? '';
    const startMs = Number(row['start']);
    const keys = JSON.parse(row['keys'] ?? '[]') as HotKeys['keys'];
    const accesses = Number(row['accesses']);
    const last = merged.at(-1);
    if (last === undefined || last.table !== table || last.startMs !== startMs) {
      merged.push({ table, startMs, accesses, keys });
      continue;
    }
    const sums = new Map(last.keys.map((key) => [key.key, key]));
    for (const key of keys) {
      const known = sums.get(key.key);
      sums.set(key.key, {
        key: key.key,
        count: key.count + (known?.count ?? 0),
        writes: key.writes + (known?.writes ?? 0),
        error: key.error + (known?.error ?? 0),
      });
    }
    merged[merged.length - 1] = {
      table,
      startMs,
      accesses: last.accesses + accesses,
      keys: [...sums.values()].sort((a, b) => b.count - a.count),
    };
  }
  return merged;
}
