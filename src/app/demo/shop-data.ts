/**
 * Lays and fills the shop, server-side: no row crosses the wire.
 */
import { pg } from '../../core/pg.js';
import { SHOP_CONSTRAINTS, SHOP_DATABASE, SHOP_PASSWORD, SHOP_ROLE, SHOP_TABLES } from './shop-schema.js';

export const ROWS_AT_SCALE_1 = 1_022_323;

/** Rows that the load picks from. */
export interface ShopSize {
  readonly customers: number;
  readonly products: number;
  readonly orders: number;
  readonly accounts: number;
}

export function shopSize(scale: number): ShopSize {
  return {
    customers: Math.max(100, Math.round(60_000 * scale)),
    products: Math.max(100, Math.round(20_000 * scale)),
    orders: Math.max(100, Math.round(134_000 * scale)),
    accounts: Math.max(200, Math.round(20_000 * scale)),
  };
}

/** Statements that fill the tables, grouped into lists that may run at the same time. No constraint exists yet. */
function fillStatements(size: ShopSize): readonly (readonly string[])[] {
  const { customers, products, orders, accounts } = size;
  const people = [
    `INSERT INTO customer (id, name, email, tier, interests, profile, born, created_at)
     SELECT n, 'Customer ' || n, 'Customer' || n || '@Example.org', (ARRAY['bronze','silver','gold'])[1 + n % 3]::tier,
       (ARRAY['books', 'garden', 'tea'])[1 : n % 4], jsonb_build_object('newsletter', n % 2 = 0, 'visits', n % 50),
       date '1950-01-01' + (n % 20000), now() - make_interval(hours => n % 8000)
     FROM generate_series(1, ${customers}) AS n`,
    `INSERT INTO address (customer_id, street, city, postcode, valid)
     SELECT n, 'Street ' || n % 977, 'City ' || n % 211, lpad((n % 99999)::text, 5, '0'),
       daterange(date '2020-01-01' + n % 900, NULL)
     FROM generate_series(1, ${customers}) AS n`,
    `INSERT INTO account SELECT n, 'Owner ' || n, 1000, 1000 FROM generate_series(1, ${accounts}) AS n`,
    `INSERT INTO order_event (order_id, kind, detail, happened_at)
     SELECT n % ${orders} + 1, (ARRAY['viewed', 'placed', 'packed'])[1 + n % 3], jsonb_build_object('step', n % 3),
       now() - make_interval(mins => n % 200000)
     FROM generate_series(1, ${Math.round(orders * 1.2)}) AS n`,
    `INSERT INTO visit (page, took, address, seen_at)
     SELECT '/p/' || n % 500, make_interval(secs => n % 90), ('10.0.' || n % 250 || '.7')::inet, now() - make_interval(mins => n)
     FROM generate_series(1, ${Math.round(orders / 5)}) AS n`,
    `INSERT INTO payment (order_id, amount, method, paid_at)
     SELECT n, (n % 9000 + 99) / 50.0, (ARRAY['card', 'invoice'])[1 + n % 2], now() - make_interval(mins => n % 200000)
     FROM generate_series(1, ${Math.round(orders * 0.9)}) AS n`,
    `INSERT INTO review (product_id, customer_id, stars, body)
     SELECT 1 + n % ${products}, 1 + n % ${customers}, 1 + n % 5, repeat('Good value. ', 1 + n % 8)
     FROM generate_series(1, ${Math.round(orders / 3)}) AS n`,
    `INSERT INTO client_register SELECT n, 0 FROM generate_series(0, 255) AS n`,
  ];
  const trade = [
    `INSERT INTO category SELECT n, NULLIF(n / 10, 0), 'Category ' || n FROM generate_series(1, 200) AS n`,
    `INSERT INTO product (id, category_id, name, price, dimensions, attributes, photo, stock, stock_initial)
     SELECT n, 1 + n % 200, 'Product ' || n, (n % 9000 + 99) / 100.0, ARRAY[n % 100, n % 50, 1.5],
       jsonb_build_object('colour', (ARRAY['red', 'green', 'blue'])[1 + n % 3], 'weight', n % 4000),
       decode(md5(n::text), 'hex'), 1000000, 1000000
     FROM generate_series(1, ${products}) AS n`,
    `INSERT INTO price_history SELECT n, timestamp '2024-01-01' + make_interval(days => k * 30), (n % 9000 + 50) / 100.0
     FROM generate_series(1, ${products}) AS n, generate_series(1, 2) AS k`,
    `INSERT INTO order_line (order_id, line_no, product_id, quantity, price)
     SELECT n, k, 1 + (n * 7 + k) % ${products}, 1 + n % 3, (((n * 7 + k) % ${products} + 1) % 9000 + 99) / 100.0
     FROM generate_series(1, ${orders}) AS n, generate_series(1, 2 + n % 2) AS k`,
    `INSERT INTO orders (id, customer_id, status, total, placed_at)
     SELECT n, 1 + n % ${customers}, (ARRAY['shipped', 'paid', 'packed', 'shipped'])[1 + n % 4]::order_status,
       (SELECT sum((1 + n % 3) * ((((n * 7 + k) % ${products} + 1) % 9000 + 99) / 100.0)::numeric(10,2))
        FROM generate_series(1, 2 + n % 2) AS k), now() - make_interval(mins => n % 200000)
     FROM generate_series(1, ${orders}) AS n`,
  ];
  return [people, trade];
}

/** After rows with explicit ids, the generators have to be moved past them. */
const MOVE_SEQUENCES = ['customer', 'product', 'orders', 'order_event']
  .map(
    (table) => `SELECT setval(pg_get_serial_sequence('shop.${table}', 'id'), (SELECT max(id) FROM ${table}))`,
  )
  .join(';\n');

export interface ShopProgress {
  readonly done: number;
  readonly total: number;
}

/**
 * Creates role, database and shop on a fresh server. `url(database)` must give a superuser's connection string.
 * Returns the number of rows in the shop. Two connections work side by side.
 */
export async function createShop(
  url: (database: string) => string,
  options: { readonly scale: number; readonly onProgress?: (progress: ShopProgress) => void },
): Promise<number> {
  await withClient(url('postgres'), async (client) => {
    await client.query(`CREATE ROLE ${SHOP_ROLE} LOGIN PASSWORD '${SHOP_PASSWORD}'`);
    await client.query(`CREATE DATABASE ${SHOP_DATABASE}`);
  });
  const lists = fillStatements(shopSize(options.scale));
  const total = lists.flat().length + SHOP_CONSTRAINTS.length + 2;
  let done = 0;
  const step = (): void => options.onProgress?.({ done: ++done, total });
  const shop = url(SHOP_DATABASE);
  await withClient(shop, (client) => client.query(SHOP_TABLES));
  step();
  await Promise.all(lists.map((list) => runAll(shop, list, step)));
  return withClient(shop, async (client) => {
    await client.query("SET search_path = shop; SET maintenance_work_mem = '128MB'");
    await client.query(MOVE_SEQUENCES);
    for (const statement of SHOP_CONSTRAINTS) {
      await client.query(statement);
      step();
    }
    // A small sample is enough for plans by key, and takes a tenth of the time.
    await client.query('SET default_statistics_target = 10; ANALYZE');
    step();
    return countRows(client);
  });
}

/**
 * What an operator brings to the destination: an empty database of the same name, and the role, which belongs to no
 * database, with the very same password verifier. `url(database)` give superusers' connection strings.
 */
export async function prepareDestination(
  sourceUrl: (database: string) => string,
  destinationUrl: (database: string) => string,
): Promise<void> {
  const verifier = await withClient(sourceUrl('postgres'), async (client) => {
    const { rows } = await client.query<{ rolpassword: string }>(
      'SELECT rolpassword FROM pg_authid WHERE rolname = $1',
      [SHOP_ROLE],
    );
    return rows[0]?.rolpassword ?? '';
  });
  await withClient(destinationUrl('postgres'), async (client) => {
    await client.query(`CREATE ROLE ${SHOP_ROLE} LOGIN PASSWORD '${verifier.replaceAll("'", "''")}'`);
    await client.query(`CREATE DATABASE ${SHOP_DATABASE}`);
  });
}

async function countRows(client: pg.Client): Promise<number> {
  const { rows } = await client.query<{ n: string }>(
    `SELECT sum((xpath('/row/n/text()', query_to_xml(format('SELECT count(*) AS n FROM %s', oid::regclass), false, true, '')))[1]::text::bigint) AS n
     FROM pg_class WHERE relnamespace = 'shop'::regnamespace AND relkind = 'r'`,
  );
  return Number(rows[0]?.n ?? 0);
}

async function runAll(url: string, statements: readonly string[], step: () => void): Promise<void> {
  await withClient(url, async (client) => {
    await client.query("SET search_path = shop; SET work_mem = '64MB'");
    for (const statement of statements) {
      await client.query(statement);
      step();
    }
  });
}

/** Runs `work` on a connection of its own and closes it, whatever happens. */
export async function withClient<T>(url: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString: url, application_name: 'understudy demo' });
  client.on('error', () => undefined);
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end().catch(() => undefined);
  }
}
