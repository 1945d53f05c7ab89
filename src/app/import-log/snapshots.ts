/** `--pg-stat-statements`: one snapshot or two, from a server or a CSV file each. */
import { readFile, stat } from 'node:fs/promises';
import {
  atOnce,
  differenceOf,
  readSnapshotCsv,
  snapshotOf,
  spread,
  type SnapshotRow,
  type StatementSnapshot,
  type StatementTotals,
} from '../../capture/import/pg-stat-statements.js';
import { UnderstudyError } from '../../core/errors.js';
import type { CapturedStatement } from '../../core/capture-ports.js';
import type { DatabaseEndpoint } from '../../core/ports.js';
import { connectControl } from '../../core/postgres.js';
import { isLoopback, parseDatabaseUrl } from '../config/endpoint.js';
import type { Span } from './import-run.js';

export interface SnapshotImport {
  readonly statements: Iterable<CapturedStatement>;
  /** What the figures speak of; empty for totals, of which nobody knows when they were. */
  readonly spans: readonly Span[];
  readonly executions: number;
  readonly shapes: number;
  readonly unreadable: number;
  readonly meaning: string;
}

/** Throws `config-invalid`, `log-unreadable`, `source-unreachable`. */
export async function readSnapshots(places: readonly string[]): Promise<SnapshotImport | null> {
  if (places.length === 0) return null;
  if (places.length > 2)
    throw new UnderstudyError(
      'config-invalid',
      '--pg-stat-statements may be given once, or twice for a difference',
    );
  const snapshots: StatementSnapshot[] = [];
  for (const place of places) snapshots.push(await readSnapshot(place));
  const [one, other] = snapshots.sort((a, b) => a.takenMs - b.takenMs);
  if (one === undefined) return null;
  const unreadable = (other ?? one).unreadable;
  if (other === undefined)
    return {
      statements: atOnce(one.totals, one.takenMs),
      spans: [],
      ...figuresOf(one.totals),
      unreadable,
      meaning: 'since the last reset; one snapshot says nothing of when',
    };
  const difference = differenceOf(one, other);
  return {
    statements: spread(difference, one.takenMs, other.takenMs),
    spans: [{ fromMs: one.takenMs, untilMs: other.takenMs }],
    ...figuresOf(difference),
    unreadable,
    meaning: `between ${new Date(one.takenMs).toISOString()} and ${new Date(other.takenMs).toISOString()}`,
  };
}

function figuresOf(totals: readonly StatementTotals[]): {
  readonly executions: number;
  readonly shapes: number;
} {
  return { executions: totals.reduce((sum, { calls }) => sum + calls, 0), shapes: totals.length };
}

async function readSnapshot(place: string): Promise<StatementSnapshot> {
  if (/^postgres(ql)?:\/\//.test(place)) return await fromServer(place);
  try {
    const { mtimeMs } = await stat(place);
    return readSnapshotCsv(place, await readFile(place, 'utf8'), mtimeMs);
  } catch (error) {
    if (error instanceof UnderstudyError) throw error;
    throw new UnderstudyError('log-unreadable', `${place} can’t be opened`, { cause: error });
  }
}

async function fromServer(url: string): Promise<StatementSnapshot> {
  const parsed = parseDatabaseUrl(url);
  if (typeof parsed === 'string')
    throw new UnderstudyError('config-invalid', `--pg-stat-statements: ${parsed}`);
  const password = parsed.endpoint.password ?? process.env['PGPASSWORD'];
  const endpoint: DatabaseEndpoint = {
    ...parsed.endpoint,
    ...(password === undefined ? {} : { password }),
    tls: parsed.tls ?? (isLoopback(parsed.endpoint.host) ? 'disable' : 'verify-full'),
  };
  const client = await connectControl('source', endpoint, { purpose: 'import' });
  try {
    const { rows: places } = await client.query<{ place: string }>(
      `SELECT quote_ident(n.nspname) AS place FROM pg_catalog.pg_extension e
         JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_stat_statements'`,
    );
    const schema = places[0]?.place;
    if (schema === undefined)
      throw new UnderstudyError('log-unreadable', 'the extension pg_stat_statements is not there', {
        advice:
          'Run CREATE EXTENSION pg_stat_statements in that database; it must be in shared_preload_libraries.',
      });
    const { rows } = await client.query<SnapshotRow>(
      `SELECT s.*, (extract(epoch FROM now()) * 1000)::text AS now_ms FROM ${schema}.pg_stat_statements s
        WHERE s.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())`,
    );
    return snapshotOf(endpoint.database, rows, Number(rows[0]?.['now_ms'] ?? Date.now()));
  } finally {
    await client.end();
  }
}
