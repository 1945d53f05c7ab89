/** Statements as the proxy tells them, and a schema for them that has something of everything. */
import type { SeriesCollector } from '../../src/capture/collector.js';
import type { CapturedStatement, SeriesBatch } from '../../src/core/capture-ports.js';

export const MINUTE = 60_000;
export const HOUR = 3_600_000;
/** A Wednesday, 10:00 UTC. */
export const START = Date.UTC(2026, 0, 7, 10);
export const IDLE = 'I'.charCodeAt(0);
export const OPEN = 'T'.charCodeAt(0);

export const SHOP_SQL = `
    CREATE SCHEMA shop; CREATE SCHEMA other;
    CREATE TABLE shop.customer (id bigint PRIMARY KEY, email text UNIQUE, name text);
    CREATE TABLE shop.line (order_id int, number int, note text, PRIMARY KEY (order_id, number));
    CREATE TABLE shop.event (id uuid, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE shop.event_2026 PARTITION OF shop.event FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')
      PARTITION BY RANGE (at);
    CREATE TABLE shop.event_2026_01 PARTITION OF shop.event_2026 FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
    CREATE TABLE public.customer (id int PRIMARY KEY);
    CREATE TABLE other.only_here (id int);
    CREATE TABLE shop.loose (id int);
    CREATE UNIQUE INDEX ON shop.loose (id) WHERE id > 0;
    CREATE VIEW shop.buyer AS SELECT c.id, l.number FROM shop.customer c JOIN shop.line l ON l.order_id = c.id;
    CREATE VIEW shop.big_buyer AS SELECT * FROM shop.buyer WHERE number > 10;
    CREATE MATERIALIZED VIEW shop.totals AS SELECT count(*) FROM shop.line;
    CREATE FUNCTION shop.lines(int) RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM shop.line WHERE order_id = $1';
    CREATE FUNCTION shop.note(int) RETURNS void LANGUAGE sql AS 'UPDATE shop.line SET note = '''' WHERE order_id = $1; SELECT shop.lines($1)';
    CREATE FUNCTION shop.opaque() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'`;

export function captured(text: string, changed: Partial<CapturedStatement> = {}): CapturedStatement {
  return {
    endedAtMs: START,
    sessionId: 1,
    text,
    cut: false,
    durationMicros: 1_000,
    rows: 1,
    bytesToServer: 10,
    bytesToClient: 100,
    errorClass: null,
    transactionStatus: IDLE,
    ...changed,
  };
}

export function taken(from: SeriesCollector): SeriesBatch {
  const batch = from.take();
  if (batch === null) throw new Error('nothing was collected');
  return batch;
}
