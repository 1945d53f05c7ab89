/**
 * What the shop's clients do: a mixture of reads and writes over the simple protocol, unnamed and named prepared
 * statements, pipelines, cursors and transactions of several statements. Each write that adds or removes a row tells
 * the {@link WriteLog} what it was told.
 *
 * Rows are locked in ascending order everywhere, so that the load can't deadlock by itself: an error is a finding.
 */
import type { LoadSession, Row, Value } from './load-session.js';
import type { ShopSize } from './shop-data.js';
import { SHOP_CHANNEL } from './shop-schema.js';
import type { WriteLog } from './write-log.js';

/** One client's place in the load. `session` counts and times what runs through it. */
export interface ClientContext {
  readonly client: number;
  readonly session: LoadSession;
  readonly size: ShopSize;
  readonly writes: WriteLog;
  /** 0 ≤ x < 1. */
  readonly random: () => number;
  /** Orders this client has placed and not yet paid. */
  readonly unpaid: { readonly order: string; readonly total: string }[];
  /** Cart lines this client has added and may remove. */
  readonly cart: { readonly id: string; readonly token: number }[];
  register: number;
  /** Number of a notification about to be sent. */
  readonly notification: { next(): number; acknowledged(n: number): void };
}

export type Transaction = (context: ClientContext) => Promise<void>;

/** Weight and transaction; about half of them write. */
const MIXTURE: readonly (readonly [number, Transaction])[] = [
  [26, readProduct],
  [10, searchProducts],
  [10, readOrders],
  [1, walkCursor],
  [9, placeOrder],
  [8, payOrder],
  [12, transferMoney],
  [10, editCart],
  [7, visitPage],
  [5, updateRegister],
  [2, updateProfile],
];
const TOTAL_WEIGHT = MIXTURE.reduce((sum, [weight]) => sum + weight, 0);

export function pickTransaction(random: () => number): Transaction {
  let left = random() * TOTAL_WEIGHT;
  for (const [weight, transaction] of MIXTURE) {
    left -= weight;
    if (left < 0) return transaction;
  }
  return readProduct;
}

function below(context: ClientContext, limit: number): number {
  return 1 + Math.floor(context.random() * limit);
}

/** Rows skewed towards small ids: most clients look at the same few products. */
function popular(context: ClientContext, limit: number): number {
  return 1 + Math.floor(context.random() ** 3 * limit);
}

function text(row: Row | undefined, column: string): string {
  const value = row?.[column];
  return typeof value === 'string' || typeof value === 'number' ? String(value) : '';
}

async function readProduct(context: ClientContext): Promise<void> {
  await context.session.prepared(
    'read_product',
    `SELECT p.id, p.name, p.price, p.attributes, p.dimensions, c.name AS category
     FROM product p JOIN category c ON c.id = p.category_id WHERE p.id = $1`,
    [popular(context, context.size.products)],
  );
}

async function searchProducts(context: ClientContext): Promise<void> {
  const weight = below(context, 4000) - 1;
  await context.session.simple(
    `SELECT id, name, price FROM product WHERE attributes @> '{"weight": ${weight}}' LIMIT 5`,
  );
}

async function readOrders(context: ClientContext): Promise<void> {
  await context.session.extended(
    'SELECT id, status, total, placed_at FROM orders WHERE customer_id = $1 ORDER BY placed_at DESC LIMIT 10',
    [below(context, context.size.customers)],
  );
}

async function walkCursor(context: ClientContext): Promise<void> {
  const { session } = context;
  const customer = below(context, context.size.customers);
  await session.simple('BEGIN');
  await session.simple(
    `DECLARE walk CURSOR FOR SELECT id, happened_at FROM order_event WHERE order_id > ${customer} ORDER BY order_id LIMIT 20`,
  );
  await session.simple('FETCH 10 FROM walk');
  await session.simple('FETCH 10 FROM walk');
  await session.simple('COMMIT');
}

async function placeOrder(context: ClientContext): Promise<void> {
  const { session, size } = context;
  const token = context.writes.issue(context.client);
  const eventToken = context.writes.issue(context.client);
  const first = below(context, size.products - 1);
  const second = first + below(context, size.products - first);
  const placed = await write(context, [token, eventToken], async (commit) => {
    await session.simple('BEGIN');
    const rows = await session.prepared(
      'place_order',
      'INSERT INTO orders (customer_id, token) VALUES ($1, $2) RETURNING id, invoice',
      [below(context, size.customers), token],
    );
    const order = text(rows[0], 'id');
    await session.pipeline(
      [first, second].map((product, index) => ({
        text: `INSERT INTO order_line (order_id, line_no, product_id, quantity, price)
               SELECT $1, $2, id, $3, price FROM product WHERE id = $4`,
        values: [order, index + 1, below(context, 3), product] as readonly Value[],
      })),
    );
    const updated = await session.prepared(
      'total_order',
      `UPDATE orders SET total = (SELECT sum(amount) FROM order_line WHERE order_id = $1) WHERE id = $1 RETURNING total`,
      [order],
    );
    await session.extended(
      `INSERT INTO order_event (order_id, kind, detail, token) VALUES ($1, 'placed', jsonb_build_object('lines', 2), $2)`,
      [order, eventToken],
    );
    await commit();
    return { order, total: text(updated[0], 'total') };
  });
  if (context.unpaid.length < 100) context.unpaid.push(placed);
}

async function payOrder(context: ClientContext): Promise<void> {
  const { session } = context;
  const open = context.unpaid.shift();
  if (open === undefined) return placeOrder(context);
  const token = context.writes.issue(context.client);
  await write(context, [token], async (commit) => {
    await session.simple("BEGIN; SELECT set_config('app.actor', 'payment', true)");
    await session.extended('UPDATE orders SET status = $2::order_status WHERE id = $1', [open.order, 'paid']);
    await session.extended('INSERT INTO payment (order_id, amount, method, token) VALUES ($1, $2, $3, $4)', [
      open.order,
      open.total,
      'card',
      token,
    ]);
    const n = context.notification.next();
    await session.simple(`NOTIFY ${SHOP_CHANNEL}, '${n}'`);
    await commit();
    context.notification.acknowledged(n);
  });
}

async function transferMoney(context: ClientContext): Promise<void> {
  const { session, size } = context;
  const lower = below(context, size.accounts - 1);
  const upper = lower + below(context, size.accounts - lower);
  const amount = below(context, 500) / 100;
  const [from, to, sign] = context.random() < 0.5 ? [lower, upper, -1] : [upper, lower, 1];
  const token = context.writes.issue(context.client);
  const change = 'UPDATE account SET balance = balance + $2::numeric WHERE id = $1';
  await write(context, [token], async (commit) => {
    await session.extended('BEGIN', []);
    await session.prepared('move_money', change, [lower, String(sign * amount)]);
    await session.prepared('move_money', change, [upper, String(-sign * amount)]);
    await session.prepared(
      'record_transfer',
      'INSERT INTO transfer (from_account, to_account, amount, token) VALUES ($1, $2, $3::numeric, $4)',
      [from, to, String(amount), token],
    );
    await commit();
  });
}

/** Adds a line; once there are some, removes the oldest: a delete that must hold, too. */
async function editCart(context: ClientContext): Promise<void> {
  const { session, size, cart } = context;
  const old = cart.length > 5 ? cart.shift() : undefined;
  if (old !== undefined) {
    context.writes.move(old.token, 'erasing');
    await session.prepared('remove_from_cart', 'DELETE FROM cart_line WHERE id = $1', [old.id]);
    context.writes.move(old.token, 'erased');
    return;
  }
  const token = context.writes.issue(context.client);
  const id = await write(context, [token], async (commit) => {
    const rows = await session.prepared(
      'add_to_cart',
      'INSERT INTO cart_line (customer_id, product_id, token) VALUES ($1, $2, $3) RETURNING id',
      [below(context, size.customers), popular(context, size.products), token],
    );
    await commit('autocommit');
    return text(rows[0], 'id');
  });
  cart.push({ id, token });
}

async function visitPage(context: ClientContext): Promise<void> {
  const token = context.writes.issue(context.client);
  const page = popular(context, 500);
  await write(context, [token], async (commit) => {
    await context.session.simple(
      `INSERT INTO visit (page, took, token) VALUES ('/p/${page}', interval '${page} ms', ${token})`,
    );
    await commit('autocommit');
  });
}

async function updateRegister(context: ClientContext): Promise<void> {
  context.register += 1;
  const value = context.register;
  context.writes.registerIssued(context.client, value);
  await context.session.prepared('set_register', 'UPDATE client_register SET value = $2 WHERE client = $1', [
    context.client,
    value,
  ]);
  context.writes.registerAcknowledged(context.client, value);
}

async function updateProfile(context: ClientContext): Promise<void> {
  await context.session.extended(
    `UPDATE customer SET profile = profile || jsonb_build_object('seen', $2::text), interests = ARRAY['tea', $2::text]
     WHERE id = $1`,
    [popular(context, context.size.customers), `product-${below(context, 99)}`],
  );
}

/**
 * Runs a writing transaction and moves its tokens by what the client is told. `commit` sends COMMIT (or, for a single
 * statement in autocommit, nothing: its answer was the commit's).
 * An error the server answered before the commit was sent refuses the tokens; any other leaves them unanswered.
 */
async function write<T>(
  context: ClientContext,
  tokens: readonly number[],
  body: (commit: (mode?: 'autocommit') => Promise<void>) => Promise<T>,
): Promise<T> {
  let committing = false;
  const commit = async (mode?: 'autocommit'): Promise<void> => {
    committing = true;
    if (mode !== 'autocommit') await context.session.simple('COMMIT');
    for (const token of tokens) context.writes.move(token, 'acknowledged');
  };
  try {
    return await body(commit);
  } catch (error) {
    if (!committing && isServerAnswer(error)) {
      for (const token of tokens) context.writes.move(token, 'refused');
    }
    throw error;
  }
}

/** Whether the server answered with an error of the statement itself: classes 08 and 57 tell of a lost connection. */
function isServerAnswer(error: unknown): boolean {
  if (!(error instanceof Error) || !('code' in error) || typeof error.code !== 'string') return false;
  return /^[0-9A-Z]{5}$/.test(error.code) && !error.code.startsWith('08') && !error.code.startsWith('57');
}
