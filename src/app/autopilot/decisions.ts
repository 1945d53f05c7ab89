/**
 * Decisions in the destination, schema `understudy`, table `decision`: recorded before they are acted on, with the figures
 * they were made on. A cutover that the loop begins is a row without an outcome until it has ended; a row without one is of a
 * process that died, and counts as a failed try; the next process's loop says what became of it.
 */
import type pg from 'pg';
import { asUnderstudyError } from '../../core/errors.js';
import {
  WHOLE_DATABASE,
  type DatabaseEndpoint,
  type OperationKind,
  type OperationReport,
  type OperationState,
} from '../../core/ports.js';
import { connectControl } from '../../core/postgres.js';
import type { PastCopy } from '../../predict/experience.js';
import type { DecisionKind } from '../../core/autopilot-ports.js';
import type { Attempt, Verdict, VerdictCode } from './situation.js';

const SCHEMA_SQL = [
  'CREATE SCHEMA IF NOT EXISTS understudy',
  `CREATE TABLE IF NOT EXISTS understudy.decision (
     number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
     at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
     mode text NOT NULL,
     kind text NOT NULL,
     code text NOT NULL,
     reason text NOT NULL,
     figures text NOT NULL,
     outcome text,
     outcome_reason text,
     operation text,
     ended_at timestamptz)`,
];
const PAST_COPY_SQL = [
  'CREATE SCHEMA IF NOT EXISTS understudy',
  `CREATE TABLE IF NOT EXISTS understudy.past_copy (
     at timestamptz PRIMARY KEY DEFAULT pg_catalog.clock_timestamp(),
     bytes bigint NOT NULL,
     copy_seconds double precision NOT NULL,
     ready_seconds double precision NOT NULL)`,
];
const PAST_COPIES = 40;
const KEPT = 10_000;
/** Tries that are looked back at. */
const ATTEMPTS = 400;
const CONNECTION = {
  purpose: 'decisions',
  connectTimeoutMs: 5_000,
  settings: { statement_timeout: '10000', lock_timeout: '5000' },
} as const;

export type SteeringCode = 'intensity' | 'copy-order';

/** `figures` say the subset, where it is about one. */
export interface Decision extends Omit<Verdict, 'kind' | 'code'> {
  readonly kind: DecisionKind;
  /** Of a verdict; or what was steered. */
  readonly code: VerdictCode | SteeringCode;
}

export interface DecisionRecord extends Decision {
  readonly number: number;
  /** ISO 8601. */
  readonly at: string;
  readonly mode: string;
  /** Of a cutover, and of steering. */
  readonly outcome: string | null;
  readonly outcomeReason: string | null;
  readonly operation: string | null;
}

export interface OperationSummary {
  readonly id: string;
  readonly subset: string;
  readonly kind: OperationKind;
  readonly state: OperationState;
  readonly startedAt: string;
  readonly finishedAt: string | null;
  readonly reason: string | null;
  readonly report: OperationReport | null;
}

type Row = Readonly<Record<string, string | null>>;

export class Decisions {
  readonly #destination: DatabaseEndpoint;

  constructor(destination: DatabaseEndpoint) {
    this.#destination = destination;
  }

  /** Throws `destination-unreachable`: then nothing is recorded, and nothing may be done. */
  record(mode: string, decision: Decision): Promise<number> {
    return this.#with(async (client) => {
      for (const sql of SCHEMA_SQL) await client.query(sql);
      const made = await client.query<Row>(
        `INSERT INTO understudy.decision (mode, kind, code, reason, figures) VALUES ($1, $2, $3, $4, $5) RETURNING number`,
        [mode, decision.kind, decision.code, decision.reason, JSON.stringify(decision.figures)],
      );
      const number = Number(made.rows[0]?.['number']);
      await client.query('DELETE FROM understudy.decision WHERE number <= $1', [number - KEPT]);
      return number;
    });
  }

  settle(
    number: number,
    outcome: 'done' | 'refused' | 'aborted',
    reason: string | null,
    operation: string | null,
  ): Promise<void> {
    return this.#with(async (client) => {
      await client.query(SETTLE, [number, outcome, reason, operation]);
    });
  }

  /**
   * Gives decisions without an outcome the one that the journal knows of: of processes that ended over them, before this one
   * began `sinceMs` ago. False: of some it isn't known yet, as their operation is not over.
   */
  settleLeft(sinceMs: number): Promise<boolean> {
    return this.#with(async (client) => {
      if (!(await has(client, 'decision'))) return true;
      const left = await client.query<Row>(LEFT, [sinceMs]);
      const journal = await has(client, 'operation');
      let whole = true;
      for (const row of left.rows) {
        const [number, subset] = [row['number'] ?? '', subsetOf(row) ?? WHOLE_DATABASE];
        const begun =
          journal && row['kind'] === 'cutover'
            ? await client.query<Row>(BEGUN, [subset, number, sinceMs])
            : { rows: [] };
        const outcome = outcomeOf(row['kind'] ?? '', begun.rows[0]);
        if (outcome === undefined) whole = false;
        else await client.query(SETTLE, [number, ...outcome]);
      }
      return whole;
    });
  }

  /** A copy that this process has done from its beginning to its end. */
  recordCopy({ bytes, copySeconds, readySeconds }: PastCopy): Promise<void> {
    return this.#with(async (client) => {
      for (const sql of PAST_COPY_SQL) await client.query(sql);
      await client.query(
        'INSERT INTO understudy.past_copy (bytes, copy_seconds, ready_seconds) VALUES ($1, $2, $3)',
        [bytes, copySeconds, readySeconds],
      );
    });
  }

  /** The oldest first. */
  pastCopies(): Promise<readonly PastCopy[]> {
    return this.#with(async (client) => {
      if (!(await has(client, 'past_copy'))) return [];
      const found = await client.query<Row>(
        `SELECT bytes, copy_seconds, ready_seconds FROM understudy.past_copy ORDER BY at DESC LIMIT ${PAST_COPIES}`,
      );
      return found.rows.toReversed().map((row) => ({
        bytes: Number(row['bytes']),
        copySeconds: Number(row['copy_seconds']),
        readySeconds: Number(row['ready_seconds']),
      }));
    });
  }

  /**
   * What `decide` needs to know of the past, the newest first: own tries but `without`, the one under way; and of each subset
   * the newest operation that was done, and the newest that was not.
   */
  past(without?: number): Promise<{
    readonly attempts: readonly Attempt[];
    readonly operations: readonly OperationSummary[];
  }> {
    return this.#with(async (client) => {
      const attempts = (await has(client, 'decision'))
        ? await client.query<Row>(
            `SELECT (pg_catalog.date_part('epoch', COALESCE(ended_at, at)) * 1000)::bigint AS at_ms, outcome, kind, figures
             FROM understudy.decision WHERE kind IN ('cutover', 'retire') AND number <> $1 ORDER BY number DESC LIMIT ${ATTEMPTS}`,
            [without ?? -1],
          )
        : { rows: [] };
      return {
        attempts: attempts.rows.map((row) => ({
          atMs: Number(row['at_ms']),
          subset: subsetOf(row),
          outcome: (row['outcome'] ?? null) as Attempt['outcome'],
        })),
        operations: await readOperations(client, NEWEST_OF_EACH),
      };
    });
  }

  /** The newest first. */
  list(limit: number): Promise<{
    readonly decisions: readonly DecisionRecord[];
    readonly operations: readonly OperationSummary[];
  }> {
    return this.#with(async (client) => {
      const found = (await has(client, 'decision'))
        ? await client.query<Row>(
            `SELECT number, ${utc('at')} AS at, mode, kind, code, reason, figures, outcome, outcome_reason, operation
             FROM understudy.decision ORDER BY number DESC LIMIT $1`,
            [limit],
          )
        : { rows: [] };
      return {
        decisions: found.rows.map(decisionFrom),
        operations: await readOperations(client, NEWEST, [limit]),
      };
    });
  }

  async #with<T>(work: (client: pg.Client) => Promise<T>): Promise<T> {
    const client = await connectControl('destination', this.#destination, CONNECTION);
    try {
      return await work(client);
    } catch (error) {
      throw asUnderstudyError(error, 'destination-unreachable', 'decisions');
    } finally {
      await client.end().catch(() => undefined);
    }
  }
}

const SETTLE = `UPDATE understudy.decision SET outcome = $2, outcome_reason = $3, operation = $4,
  ended_at = pg_catalog.clock_timestamp() WHERE number = $1`;
/** All times are this server's. */
const before = (ms: string): string =>
  `pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => ${ms}::float8 / 1000)`;
const LEFT = `SELECT number, kind, figures FROM understudy.decision
  WHERE kind IN ('cutover', 'retire', 'tune') AND outcome IS NULL AND at < ${before('$1')} ORDER BY number`;
/** Nothing else was decided between a decision and its operation. */
const BEGUN = `SELECT o.id, o.state, o.reason, o.finished_at FROM understudy.operation o, understudy.decision d
  WHERE d.number = $2 AND o.subset = $1 AND o.kind = 'cutover' AND o.started_at >= d.at
    AND o.started_at < LEAST(${before('$3')}, (SELECT pg_catalog.min(l.at) FROM understudy.decision l WHERE l.number > d.number))
  ORDER BY o.started_at LIMIT 1`;

/** Outcome, reason and operation; undefined: it is not over. `operation`: that of a decision to switch, if it had begun. */
function outcomeOf(
  kind: string,
  operation: Row | undefined,
): readonly ['done' | 'aborted', string, string | null] | undefined {
  if (operation === undefined) {
    return [
      'aborted',
      kind === 'cutover'
        ? 'the process ended before the switch had begun: nothing was switched'
        : 'the process ended before it was known to be done',
      null,
    ];
  }
  if (operation['finished_at'] == null) return undefined;
  const [id, state] = [operation['id'] ?? null, operation['state'] ?? ''];
  if (state === 'done')
    return ['done', 'the process ended meanwhile, and the next one took it to its end', id];
  return [
    'aborted',
    `the process ended meanwhile; the operation is ${state}: ${operation['reason'] ?? ''}`,
    id,
  ];
}

async function has(client: pg.Client, table: string): Promise<boolean> {
  const found = await client.query<Row>('SELECT pg_catalog.to_regclass($1) IS NOT NULL AS found', [
    `understudy.${table}`,
  ]);
  return found.rows[0]?.['found'] === 't';
}

const NEWEST = 'SELECT * FROM understudy.operation ORDER BY started_at DESC LIMIT $1';
const NEWEST_OF_EACH = `SELECT DISTINCT ON (subset, state = 'done') * FROM understudy.operation ORDER BY subset, state = 'done', started_at DESC`;

/** The newest first, of those that `which` selects. */
async function readOperations(
  client: pg.Client,
  which: string,
  parameters: readonly number[] = [],
): Promise<readonly OperationSummary[]> {
  if (!(await has(client, 'operation'))) return [];
  const found = await client.query<Row>(
    `SELECT id, subset, kind, state, ${utc('started_at')} AS started, ${utc('finished_at')} AS finished, reason, report
     FROM (${which}) operation ORDER BY started_at DESC`,
    [...parameters],
  );
  return found.rows.map((row) => ({
    id: row['id'] ?? '',
    subset: row['subset'] ?? '',
    kind: row['kind'] === 'rollback' ? 'rollback' : 'cutover',
    state: (row['state'] ?? 'failed') as OperationState,
    startedAt: row['started'] ?? '',
    finishedAt: row['finished'] ?? null,
    reason: row['reason'] ?? null,
    report: row['report'] == null ? null : (JSON.parse(row['report']) as OperationReport),
  }));
}

/** The connection's time zone is UTC. */
function utc(column: string): string {
  return `pg_catalog.to_char(${column}, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')`;
}

function subsetOf({ kind, figures }: Row): string | undefined {
  const { subset } = JSON.parse(figures ?? '{}') as Verdict['figures'];
  // What is steered names the subset that sets the pace, which it is not about alone.
  return kind === 'tune' || typeof subset !== 'string' ? undefined : subset;
}

function decisionFrom(row: Row): DecisionRecord {
  const subset = subsetOf(row);
  return {
    number: Number(row['number']),
    at: row['at'] ?? '',
    mode: row['mode'] ?? '',
    kind: (row['kind'] ?? 'wait') as Decision['kind'],
    code: (row['code'] ?? 'not-now') as Decision['code'],
    ...(subset === undefined ? {} : { subset }),
    reason: row['reason'] ?? '',
    figures: JSON.parse(row['figures'] ?? '{}') as Decision['figures'],
    outcome: row['outcome'] ?? null,
    outcomeReason: row['outcome_reason'] ?? null,
    operation: row['operation'] ?? null,
  };
}
