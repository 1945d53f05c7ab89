/** What the auditor looks at in the shop. */
import type { AuditPlan, AuditedServer } from './auditor.js';

/** `servers`: direct connection strings of the shop on every server, as the shop's own role. */
export function shopAuditPlan(servers: readonly AuditedServer[]): AuditPlan {
  return {
    servers,
    tokenTables: ['orders', 'payment', 'transfer', 'cart_line', 'visit', 'order_event'].map(
      (table) => `shop.${table}`,
    ),
    registerTable: 'shop.client_register',
    invariants: [
      {
        name: 'transfers move money, they neither make nor lose it',
        sql: `SELECT count(*) FROM (SELECT 1 FROM shop.account HAVING sum(balance) <> sum(balance_initial)) AS s`,
      },
      {
        name: 'each balance is what its transfers say',
        sql: `SELECT count(*) FROM shop.account a LEFT JOIN (
            SELECT account, sum(change) AS change FROM (
              SELECT from_account AS account, -amount AS change FROM shop.transfer
              UNION ALL SELECT to_account, amount FROM shop.transfer) AS moves GROUP BY account) AS m
            ON m.account = a.id WHERE a.balance <> a.balance_initial + coalesce(m.change, 0)`,
      },
      {
        name: 'each order’s total is the sum of its lines',
        sql: `SELECT count(*) FROM shop.orders o LEFT JOIN (
            SELECT order_id, sum(amount) AS amount FROM shop.order_line GROUP BY order_id) AS l
            ON l.order_id = o.id WHERE o.total <> coalesce(l.amount, 0)`,
      },
      {
        name: 'stock is what its movements say',
        sql: `SELECT count(*) FROM shop.product p LEFT JOIN (
            SELECT product_id, sum(change) AS change FROM shop.stock_movement GROUP BY product_id) AS m
            ON m.product_id = p.id WHERE p.stock <> p.stock_initial + coalesce(m.change, 0)`,
      },
      {
        name: 'an order placed by the load has as many movements as lines',
        sql: `SELECT count(*) FROM (
            SELECT (SELECT count(*) FROM shop.stock_movement)
              <> (SELECT count(*) FROM shop.order_line l JOIN shop.orders o ON o.id = l.order_id
                  WHERE o.token IS NOT NULL) AS differs) AS s WHERE differs`,
      },
    ],
    probes: [
      'UPDATE shop.account SET balance = balance WHERE false',
      'DELETE FROM shop.orders WHERE false',
      'UPDATE shop.order_event SET kind = kind WHERE false',
      'DELETE FROM shop.order_event_rest WHERE false',
      'INSERT INTO shop.visit (page, took) SELECT $$none$$, interval $$0$$ WHERE false',
    ],
  };
}
