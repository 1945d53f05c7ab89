/**
 * Two subsets switched one after another, and back, under clients that use both: sessions and clients of a pool.
 * Nothing is lost.
 */
import pg from 'pg';
import { expect, test } from 'vitest';
import type { OperationReport, VerifyReport } from '../../src/core/ports.js';
import type { SubsetBorder } from '../../src/core/subset-ports.js';
import { databasePair, until } from '../support/servers.js';
import { Stack } from '../support/stack.js';

const YAML = `
subsets:
  orders: { tables: [public.orders] }
  stock: { tables: [public.stock], foreignKeys: unenforced }
  lines: { tables: [public.line] }
cutover: { parting: accept }
proxy: { poolSizeMax: 2, poolModes: { pooled: transaction } }
`;

interface Writer {
  readonly written: { readonly orders: number[]; readonly stock: number[] };
  readonly errors: Error[];
  stop(): Promise<void>;
}

/** Transactions on one subset, then on the other, without pause. */
async function writer(url: string): Promise<Writer> {
  const client = new pg.Client({ connectionString: url });
  const written = { orders: [] as number[], stock: [] as number[] };
  const errors: Error[] = [];
  client.on('error', (error) => errors.push(error));
  await client.connect();
  const stopped = new AbortController();
  const running = (async () => {
    while (!stopped.signal.aborted && errors.length === 0) {
      for (const table of ['orders', 'stock'] as const) {
        try {
          await client.query('BEGIN');
          const { rows } = await client.query<{ id: number }>({
            name: `insert ${table}`,
            text: `INSERT INTO ${table} (n) VALUES ($1) RETURNING id`,
            values: [written[table].length],
          });
          await client.query(`UPDATE ${table} SET n = n + 1 WHERE id = ${rows[0]?.id}`);
          await client.query('COMMIT');
          written[table].push(rows[0]?.id ?? 0);
        } catch (error) {
          errors.push(error as Error);
        }
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

/** On the source and on the destination. */
async function stateOfKey(stack: Stack): Promise<readonly (string | undefined)[]> {
  const [key] = (await stack.status()).cutover?.foreignKeys ?? [];
  return [key?.source.state, key?.destination.state];
}

async function untilTied(stack: Stack): Promise<void> {
  let borders: readonly SubsetBorder[] = [];
  await until(async () => (borders = (await stack.status()).borders?.borders ?? []).length > 0, {
    what: 'the ties',
  });
  const ties = borders.map((border) => [
    ...border.subsets,
    ...border.ties.map(({ by, policy }) => `${by}: ${policy}`),
  ]);
  expect(ties).toContainEqual(['lines', 'orders', 'foreign key line_order_fkey: together']);
  expect(ties).toContainEqual(['rest', 'stock', 'foreign key noted: unenforced']);
}

test('subsets are switched one by one under clients that use both', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(`
    CREATE TABLE public.orders (id serial PRIMARY KEY, n int);
    CREATE TABLE public.stock (id serial PRIMARY KEY, n int);
    CREATE TABLE public.line (id serial PRIMARY KEY, "order" int REFERENCES public.orders);
    CREATE TABLE public.note (id serial PRIMARY KEY, n int, stock int CONSTRAINT noted REFERENCES public.stock);
    INSERT INTO public.note (n) VALUES (1)`);
  const databases = `pooled = ${pair.source.database}`;
  await using stack = await Stack.start({ ...pair, yaml: YAML, databases });
  await stack.following();
  const url = stack.url('postgres', 'understudy-local');
  const pooledUrl = url.replace(/[^/]*$/, 'pooled');
  const writers = await Promise.all([url, pooledUrl].map((each) => writer(each)));
  const client = new pg.Client({ connectionString: stack.url('postgres', 'understudy-local') });
  await client.connect();
  const more = async (): Promise<void> => {
    const before = writers.map(({ written }) => written.stock.length);
    const wrote = ({ written }: Writer, at: number): boolean => written.stock.length > (before[at] ?? 0) + 5;
    await until(() => writers.every(wrote) || writers.some(({ errors }) => errors.length > 0), {
      what: 'the writers',
    });
    expect(writers.flatMap(({ errors }) => errors)).toEqual([]);
  };
  const switched = async (
    operation: 'cutover' | 'rollback',
    subset?: string,
  ): Promise<readonly string[] | undefined> => {
    const report = await stack.operate<OperationReport>(operation, subset === undefined ? {} : { subset });
    expect(report).toMatchObject({ outcome: 'done' });
    await more();
    return report.subsets;
  };
  const version = async (table: string, of = client): Promise<string> => {
    const { rows } = await of.query<{ major: string }>(
      `SELECT left(current_setting('server_version'), 2) AS major FROM ${table} LIMIT 1`,
    );
    return rows[0]?.major ?? '';
  };
  const crosses = (): Promise<unknown> => client.query('SELECT FROM orders, stock');

  await more();
  // A foreign key takes the lines along.
  expect(await switched('cutover', 'orders')).toEqual(['orders', 'lines']);
  expect([await version('orders'), await version('stock'), await version('note')]).toEqual([
    '18',
    '14',
    '14',
  ]);
  await expect(crosses()).rejects.toMatchObject({
    code: '0A000',
    message: expect.stringMatching(/orders is on the destination, stock is not/) as string,
  });
  expect(await switched('rollback', 'lines')).toEqual(['lines', 'orders']);
  await crosses();
  await switched('cutover', 'orders');
  await untilTied(stack);
  // A foreign key that is not to hold meanwhile lets its subsets be parted.
  expect(await switched('cutover', 'stock')).toBeUndefined();
  expect(await stateOfKey(stack)).toEqual(['unenforced', 'unenforced']);
  const id = writers[0]?.written.stock.at(-1);
  await client.query('INSERT INTO note (stock) VALUES ($1)', [id]);
  expect(await switched('cutover')).toBeUndefined();
  await expect(client.query('INSERT INTO note (stock) VALUES (-1)')).rejects.toMatchObject({ code: '23503' });
  await until(async () => (await stateOfKey(stack)).join() === 'enforced,enforced', {
    what: 'the key validated',
  });
  expect([await version('orders'), await version('stock'), await version('note')]).toEqual([
    '18',
    '18',
    '18',
  ]);
  await crosses();
  expect((await stack.status()).proxy).toMatchObject({ armed: false, bySide: { source: 0 } });
  expect(await switched('rollback')).toEqual(['lines', 'orders', 'stock', 'rest']);
  expect((await stack.status()).proxy).toMatchObject({ armed: false, bySide: { destination: 0 } });
  expect(await version('note')).toBe('14');
  for (const each of writers) await each.stop();
  await client.end();
  const { mismatches } = await stack.operate<VerifyReport>('verify');
  expect(mismatches).toBe(0);
  const ids = (table: 'orders' | 'stock'): number[] => writers.flatMap(({ written }) => written[table]);
  for (const side of [pair.onSource, pair.onDestination]) {
    for (const table of ['orders', 'stock'] as const) {
      await until(async () => {
        const { rows } = await side.query<{ n: string }>(
          `SELECT count(*) AS n FROM public.${table} WHERE id = ANY ($1::integer[])`,
          [`{${ids(table).join(',')}}`],
        );
        return Number(rows[0]?.n) === ids(table).length;
      });
    }
  }
}, 240_000);
