/**
 * What tables measured, hour by hour, in the destination's schema `understudy`, table `past_size`: a row per hour, all tables in
 * one. Of days further back than two only the first hour is kept; nothing beyond {@link KEPT_DAYS}.
 */
import type pg from 'pg';
import type { DatabaseEndpoint } from '../../core/ports.js';
import { asUnderstudyError } from '../../core/errors.js';
import { connectControl } from '../../core/postgres.js';
import type { SizesAt } from '../plan/growth.js';

const KEPT_DAYS = 90;
/** The largest; a database of more is not measured whole. */
const TABLES_MAX = 5_000;
/** Under the lock that whoever makes tables in this schema takes: two that make one at once fail. */
const SCHEMA_SQL = [
  'BEGIN',
  `SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('understudy'))`,
  'CREATE SCHEMA IF NOT EXISTS understudy',
  `CREATE TABLE IF NOT EXISTS understudy.past_size (
     hour timestamptz PRIMARY KEY,
     bytes json NOT NULL)`,
  'COMMIT',
];
const CONNECTION = {
  purpose: 'sizes',
  connectTimeoutMs: 5_000,
  settings: { statement_timeout: '10000', lock_timeout: '5000' },
} as const;

type Row = Readonly<Record<string, string | null>>;

async function isThere(client: pg.Client): Promise<boolean> {
  const there = await client.query<Row>(
    `SELECT pg_catalog.to_regclass('understudy.past_size') IS NOT NULL AS found`,
  );
  return there.rows[0]?.['found'] === 't';
}

/** Keeps the first measurement of each hour. Throws `destination-unreachable`. */
export async function recordSizes(destination: DatabaseEndpoint, sizes: SizesAt): Promise<void> {
  const client = await connectControl('destination', destination, CONNECTION);
  try {
    if (!(await isThere(client))) for (const sql of SCHEMA_SQL) await client.query(sql);
    const largest = [...sizes.bytes].sort((a, b) => b[1] - a[1]).slice(0, TABLES_MAX);
    await client.query(
      `INSERT INTO understudy.past_size (hour, bytes)
       VALUES (pg_catalog.date_trunc('hour', pg_catalog.to_timestamp($1 / 1000.0)), $2) ON CONFLICT DO NOTHING`,
      [sizes.atMs, JSON.stringify(Object.fromEntries(largest))],
    );
    await client.query(
      `DELETE FROM understudy.past_size p
       WHERE hour < pg_catalog.clock_timestamp() - interval '${KEPT_DAYS} days'
          OR (hour < pg_catalog.clock_timestamp() - interval '2 days'
              AND EXISTS (SELECT FROM understudy.past_size o
                          WHERE o.hour < p.hour AND o.hour >= pg_catalog.date_trunc('day', p.hour)))`,
    );
  } catch (error) {
    throw asUnderstudyError(error, 'destination-unreachable', 'sizes');
  } finally {
    await client.end().catch(() => undefined);
  }
}

/** The oldest first; none where nothing was kept. Throws `destination-unreachable`. */
export async function pastSizes(destination: DatabaseEndpoint): Promise<readonly SizesAt[]> {
  const client = await connectControl('destination', destination, CONNECTION);
  try {
    if (!(await isThere(client))) return [];
    const found = await client.query<Row>(
      `SELECT (pg_catalog.date_part('epoch', hour) * 1000)::bigint AS at_ms, bytes
       FROM understudy.past_size ORDER BY hour`,
    );
    return found.rows.map((row) => ({
      atMs: Number(row['at_ms']),
      bytes: new Map(
        Object.entries(JSON.parse(row['bytes'] ?? '{}') as Record<string, number>).filter(([, bytes]) =>
          Number.isFinite(bytes),
        ),
      ),
    }));
  } catch (error) {
    throw asUnderstudyError(error, 'destination-unreachable', 'sizes');
  } finally {
    await client.end().catch(() => undefined);
  }
}
