/** The tables of the series, in schema `understudy` of the destination, and how rows get into them. */

/** Safe to run by several processes at once, beside whoever else makes tables in the schema. */
export const SERIES_SCHEMA_SQL: readonly string[] = [
  'BEGIN',
  `SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('understudy'))`,
  'CREATE SCHEMA IF NOT EXISTS understudy',
  `CREATE TABLE IF NOT EXISTS understudy.secret (name text PRIMARY KEY, value text NOT NULL)`,
  `CREATE TABLE IF NOT EXISTS understudy.series_batch (
     id text PRIMARY KEY,
     at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())`,
  `CREATE TABLE IF NOT EXISTS understudy.series_table (
     id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
     name text NOT NULL UNIQUE)`,
  `CREATE TABLE IF NOT EXISTS understudy.series_point (
     resolution integer NOT NULL,
     start timestamptz NOT NULL,
     table_id integer NOT NULL,
     reads bigint NOT NULL, writes bigint NOT NULL, errors bigint NOT NULL,
     rows_read bigint NOT NULL, rows_written bigint NOT NULL,
     bytes_to_server bigint NOT NULL, bytes_to_client bigint NOT NULL,
     duration_micros bigint NOT NULL,
     PRIMARY KEY (resolution, start, table_id))`,
  `CREATE TABLE IF NOT EXISTS understudy.series_interval (
     resolution integer NOT NULL,
     start timestamptz NOT NULL,
     observed_ms bigint NOT NULL,
     statements bigint NOT NULL, errors bigint NOT NULL, dropped bigint NOT NULL, unparsed bigint NOT NULL,
     committed bigint NOT NULL, rolled_back bigint NOT NULL,
     PRIMARY KEY (resolution, start))`,
  `CREATE TABLE IF NOT EXISTS understudy.series_co_access (
     a integer NOT NULL, b integer NOT NULL,
     transactions double precision NOT NULL,
     weight double precision NOT NULL, as_of timestamptz NOT NULL,
     PRIMARY KEY (a, b))`,
  `CREATE TABLE IF NOT EXISTS understudy.series_transition (
     "from" text NOT NULL, "to" text NOT NULL,
     weight double precision NOT NULL, as_of timestamptz NOT NULL,
     PRIMARY KEY ("from", "to"))`,
  `CREATE TABLE IF NOT EXISTS understudy.series_statement (
     fingerprint text PRIMARY KEY,
     kind text NOT NULL, text text NOT NULL, reads json NOT NULL, writes json NOT NULL,
     executions bigint NOT NULL, errors bigint NOT NULL, rows bigint NOT NULL, duration_micros bigint NOT NULL,
     first_seen timestamptz NOT NULL, last_seen timestamptz NOT NULL)`,
  `CREATE TABLE IF NOT EXISTS understudy.series_transaction (
     hour_of_week integer NOT NULL, up_to_micros bigint NOT NULL,
     weight double precision NOT NULL, as_of timestamptz NOT NULL,
     PRIMARY KEY (hour_of_week, up_to_micros))`,
  `CREATE TABLE IF NOT EXISTS understudy.series_hot_keys (
     start timestamptz NOT NULL,
     table_id integer NOT NULL,
     writer text NOT NULL,
     accesses bigint NOT NULL,
     keys json NOT NULL,
     PRIMARY KEY (start, table_id, writer))`,
  'COMMIT',
];

const TIME = (ms: string): string => `pg_catalog.to_timestamp(${ms} / 1000.0)`;
const FLOOR = `pg_catalog.to_timestamp(pg_catalog.floor(x."startMs" / ($2 * 1000.0)) * $2)`;

/**
 * `t.weight` as of `at` (SQL of a timestamp), halved every `halfLifeSeconds`. The exponent is bounded where a double
 * would underflow, which the server answers with an error.
 */
export function decayed(weight: string, asOf: string, at: string, halfLifeSeconds: number): string {
  const age = `pg_catalog.date_part('epoch', ${at} - ${asOf}) / ${halfLifeSeconds}`;
  return `${weight} * pg_catalog.power(0.5::double precision, LEAST(60, GREATEST(0, ${age})))`;
}

/** Two decayed weights as one, as of the later of both; neither needs to be the newer one. */
function mergedWeight(table: string, halfLifeSeconds: number): string {
  const at = `GREATEST(${table}.as_of, excluded.as_of)`;
  return `weight = ${decayed(`${table}.weight`, `${table}.as_of`, at, halfLifeSeconds)}
    + ${decayed('excluded.weight', 'excluded.as_of', at, halfLifeSeconds)}, as_of = ${at}`;
}

function added(table: string, columns: readonly string[]): string {
  return columns.map((column) => `${column} = ${table}.${column} + excluded.${column}`).join(', ');
}

const FIGURES = [
  ['reads', 'reads'],
  ['writes', 'writes'],
  ['errors', 'errors'],
  ['rows_read', 'rowsRead'],
  ['rows_written', 'rowsWritten'],
  ['bytes_to_server', 'bytesToServer'],
  ['bytes_to_client', 'bytesToClient'],
  ['duration_micros', 'durationMicros'],
] as const;
const INTERVAL_FIGURES = [
  ['observed_ms', 'observedMs'],
  ['statements', 'statements'],
  ['errors', 'errors'],
  ['dropped', 'dropped'],
  ['unparsed', 'unparsed'],
  ['committed', 'committed'],
  ['rolled_back', 'rolledBack'],
] as const;

function fields(figures: readonly (readonly [string, string])[]): {
  columns: string;
  sums: string;
  record: string;
  added: (table: string) => string;
} {
  return {
    columns: figures.map(([column]) => column).join(', '),
    sums: figures.map(([, field]) => `pg_catalog.sum(x."${field}")::bigint`).join(', '),
    record: figures.map(([, field]) => `"${field}" numeric`).join(', '),
    added: (table) =>
      added(
        table,
        figures.map(([column]) => column),
      ),
  };
}
const points = fields(FIGURES);
const intervals = fields(INTERVAL_FIGURES);

/** $1: names of tables, as a JSON array. */
export const INSERT_TABLES_SQL = `INSERT INTO understudy.series_table (name)
  SELECT name FROM pg_catalog.json_array_elements_text($1::json) AS name ORDER BY name
  ON CONFLICT (name) DO NOTHING`;

/** $1: the points of a batch, $2: seconds of the resolution to add them to. */
export const INSERT_POINTS_SQL = `
  INSERT INTO understudy.series_point (resolution, start, table_id, ${points.columns})
  SELECT $2::integer, ${FLOOR}, t.id, ${points.sums}
  FROM pg_catalog.json_to_recordset($1::json) AS x ("table" text, "startMs" double precision, ${points.record})
  JOIN understudy.series_table t ON t.name = x."table"
  GROUP BY 2, 3 ORDER BY 2, 3
  ON CONFLICT (resolution, start, table_id) DO UPDATE SET ${points.added('series_point')}`;

/** $1: the intervals of a batch, $2: seconds of the resolution to add them to. */
export const INSERT_INTERVALS_SQL = `
  INSERT INTO understudy.series_interval (resolution, start, ${intervals.columns})
  SELECT $2::integer, ${FLOOR}, ${intervals.sums}
  FROM pg_catalog.json_to_recordset($1::json) AS x ("startMs" double precision, ${intervals.record})
  GROUP BY 2 ORDER BY 2
  ON CONFLICT (resolution, start) DO UPDATE SET ${intervals.added('series_interval')}`;

export function insertCoAccessSql(halfLifeSeconds: number): string {
  return `
  INSERT INTO understudy.series_co_access (a, b, transactions, weight, as_of)
  SELECT a.id, b.id, x.transactions, x.weight, ${TIME('x."asOfMs"')}
  FROM pg_catalog.json_to_recordset($1::json)
    AS x (a text, b text, transactions double precision, weight double precision, "asOfMs" double precision)
  JOIN understudy.series_table a ON a.name = x.a JOIN understudy.series_table b ON b.name = x.b
  ORDER BY 1, 2
  ON CONFLICT (a, b) DO UPDATE SET ${added('series_co_access', ['transactions'])},
    ${mergedWeight('series_co_access', halfLifeSeconds)}`;
}

export function insertTransitionsSql(halfLifeSeconds: number): string {
  return `
  INSERT INTO understudy.series_transition ("from", "to", weight, as_of)
  SELECT x."from", x."to", x.weight, ${TIME('x."asOfMs"')}
  FROM pg_catalog.json_to_recordset($1::json)
    AS x ("from" text, "to" text, weight double precision, "asOfMs" double precision)
  ORDER BY 1, 2
  ON CONFLICT ("from", "to") DO UPDATE SET ${mergedWeight('series_transition', halfLifeSeconds)}`;
}

export function insertTransactionsSql(halfLifeSeconds: number): string {
  return `
  INSERT INTO understudy.series_transaction (hour_of_week, up_to_micros, weight, as_of)
  SELECT x."hourOfWeek", x."upToMicros", x.weight, ${TIME('x."asOfMs"')}
  FROM pg_catalog.json_to_recordset($1::json)
    AS x ("hourOfWeek" integer, "upToMicros" bigint, weight double precision, "asOfMs" double precision)
  ORDER BY 1, 2
  ON CONFLICT (hour_of_week, up_to_micros) DO UPDATE SET ${mergedWeight('series_transaction', halfLifeSeconds)}`;
}

export const INSERT_STATEMENTS_SQL = `
  INSERT INTO understudy.series_statement (fingerprint, kind, text, reads, writes, executions, errors, rows,
    duration_micros, first_seen, last_seen)
  SELECT x.fingerprint, x.kind, x.text, x.reads, x.writes, x.executions::bigint, x.errors::bigint, x.rows::bigint,
    x."durationMicros"::bigint, ${TIME('x."firstSeenMs"')}, ${TIME('x."lastSeenMs"')}
  FROM pg_catalog.json_to_recordset($1::json)
    AS x (fingerprint text, kind text, text text, reads json, writes json, executions numeric, errors numeric,
      rows numeric, "durationMicros" numeric, "firstSeenMs" double precision, "lastSeenMs" double precision)
  ORDER BY 1
  ON CONFLICT (fingerprint) DO UPDATE SET
    ${added('series_statement', ['executions', 'errors', 'rows', 'duration_micros'])},
    kind = excluded.kind, text = excluded.text, reads = excluded.reads, writes = excluded.writes,
    first_seen = LEAST(series_statement.first_seen, excluded.first_seen),
    last_seen = GREATEST(series_statement.last_seen, excluded.last_seen)`;

/** $1: the hot keys of a batch, $2: its writer. */
export const INSERT_HOT_KEYS_SQL = `
  INSERT INTO understudy.series_hot_keys (start, table_id, writer, accesses, keys)
  SELECT ${TIME('x."startMs"')}, t.id, $2, x.accesses::bigint, x.keys
  FROM pg_catalog.json_to_recordset($1::json)
    AS x ("table" text, "startMs" double precision, accesses numeric, keys json)
  JOIN understudy.series_table t ON t.name = x."table"
  ORDER BY 1, 2
  ON CONFLICT (start, table_id, writer) DO UPDATE SET accesses = excluded.accesses, keys = excluded.keys`;
