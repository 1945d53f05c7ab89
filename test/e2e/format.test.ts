/** A cutover to a destination with other types and names, and the way back, with writers of the old ones across both. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import pg from 'pg';
import { expect, test } from 'vitest';
import type { Finding, VerifyReport } from '../../src/core/ports.js';
import { databasePair, until } from '../support/servers.js';
import { Stack } from '../support/stack.js';

const MAIN = fileURLToPath(new URL('../../dist/app/main.js', import.meta.url));

const FORMAT = `
shadow:
  format:
    tables:
      public.orders:
        name: sales.purchase
        columns: { status: state }
        types:
          id: bigint
          status: text
          document: jsonb
          placed: { type: timestamptz, zone: UTC }
      public.line: { name: line_item, types: { order_id: bigint } }
      public.reading:
        partitioning:
          by: range
          columns: [day]
          partitions: { reading_old: "FROM (MINVALUE) TO ('2024-01-01')", reading_new: DEFAULT }
`;

interface Writer {
  readonly written: number[];
  readonly errors: Error[];
  stop(): Promise<void>;
}

/** Inserts an order with a line, and changes an older one, without pause. */
async function writer(stack: Stack): Promise<Writer> {
  const client = new pg.Client({ connectionString: stack.url('postgres', 'understudy-local') });
  const written: number[] = [];
  const errors: Error[] = [];
  client.on('error', (error) => errors.push(error));
  await client.connect();
  const stopped = new AbortController();
  const running = (async () => {
    while (!stopped.signal.aborted && errors.length === 0) {
      try {
        await client.query('BEGIN');
        const { rows } = await client.query<{ id: string | number }>({
          name: 'insert',
          text: `INSERT INTO public.orders (status, document, placed) VALUES ($1, $2, $3) RETURNING id`,
          values: ['new', { n: written.length }, '2024-02-29 12:00:00'],
        });
        const id = Number(rows[0]?.id);
        await client.query({
          name: 'line',
          text: 'INSERT INTO public.line VALUES ($1, $2)',
          values: [id, 1],
        });
        // From one partition of the destination into the other.
        await client.query('INSERT INTO public.reading VALUES ($1, $2)', [id, '2023-12-31']);
        await client.query('UPDATE public.reading SET day = day + 1 WHERE id = $1', [written.at(-2) ?? 0]);
        await client.query("UPDATE public.orders SET status = 'paid' WHERE id = $1", [written.at(-3) ?? id]);
        await client.query('COMMIT');
        written.push(id);
        await new Promise((resolve) => setTimeout(resolve, 5));
      } catch (error) {
        errors.push(error as Error);
      }
    }
  })();
  return {
    written,
    errors,
    async stop() {
      stopped.abort();
      await running;
      await client.end();
    },
  };
}

test('types and names change with a cutover and come back with a rollback, and no write is lost', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(`
    CREATE TABLE public.orders (id serial PRIMARY KEY, status varchar(10), document json, placed timestamp);
    CREATE TABLE public.line (order_id integer REFERENCES public.orders, n integer, PRIMARY KEY (order_id, n));
    CREATE TABLE public.reading (id integer, day date, PRIMARY KEY (id, day));
    INSERT INTO public.reading SELECT n, '2023-12-01'::date + n FROM generate_series(-100, 0) n;
    INSERT INTO public.orders (status, document, placed) SELECT 'old', '{"a":  1}', now() FROM generate_series(1, 1000);
    ALTER DATABASE ${pair.source.database} SET timezone = 'UTC'`);
  await using stack = await Stack.start({ ...pair, yaml: FORMAT });
  const { stdout } = await promisify(execFile)(process.execPath, [
    MAIN,
    'check',
    '--json',
    '--config',
    stack.config,
  ]);
  const { blockers, findings } = JSON.parse(stdout) as { blockers: number; findings: Finding[] };
  expect(blockers).toBe(0);
  expect(findings.filter(({ check }) => check === 'format-mapped')).toHaveLength(5);
  await stack.following();
  const writing = await writer(stack);
  const more = async (): Promise<void> => {
    const before = writing.written.length;
    await until(() => writing.written.length > before + 20 || writing.errors.length > 0, {
      what: 'the writer',
    });
    expect(writing.errors).toEqual([]);
  };
  const expectEqual = async (): Promise<void> => {
    const report = await stack.operate<VerifyReport>('verify');
    expect(report.verdicts.filter(({ mismatches }) => mismatches > 0)).toEqual([]);
  };
  await more();
  expect(await stack.operate('cutover')).toMatchObject({ outcome: 'done' });
  await more();
  const { rows: types } = await pair.onDestination.query(
    `SELECT pg_typeof(id)::text AS id, pg_typeof(placed)::text AS placed FROM sales.purchase WHERE state = 'paid' LIMIT 1`,
  );
  expect(types).toEqual([{ id: 'bigint', placed: 'timestamp with time zone' }]);
  const { rows: parts } = await pair.onDestination.query(
    `SELECT count(*) FILTER (WHERE tableoid = 'public.reading_old'::regclass) > 0 AS old,
       count(*) FILTER (WHERE tableoid = 'public.reading_new'::regclass) > 0 AS new FROM public.reading`,
  );
  expect(parts).toEqual([{ old: 't', new: 't' }]);
  await expectEqual();
  expect(await stack.operate('rollback')).toMatchObject({ outcome: 'done' });
  await more();
  await expectEqual();
  expect(await stack.operate('cutover')).toMatchObject({ outcome: 'done' });
  await more();
  await writing.stop();
  await expectEqual();
  for (const client of [pair.onSource, pair.onDestination]) {
    await until(async () => {
      const { rows } = await client.query<{ n: string }>(
        `SELECT count(*) AS n FROM public.orders o JOIN public.line ON order_id = id WHERE o.id = ANY ($1::integer[])`,
        [`{${writing.written.join(',')}}`],
      );
      return Number(rows[0]?.n) === writing.written.length;
    });
  }
});
