import { afterAll, beforeAll, expect, test } from 'vitest';
import type pg from 'pg';
import { audit, type AuditReport, type AuditedServer } from '../../src/app/demo/auditor.js';
import { type EmbeddedServer } from '../../src/app/demo/embedded-server.js';
import { Load, type LoadResult } from '../../src/app/demo/load.js';
import { shopAuditPlan } from '../../src/app/demo/shop-audit.js';
import { createShop, withClient } from '../../src/app/demo/shop-data.js';
import { SHOP_DATABASE, SHOP_PASSWORD, SHOP_ROLE } from '../../src/app/demo/shop-schema.js';
import { WriteLog } from '../../src/app/demo/write-log.js';
import { FAST_SETTINGS } from '../support/global-setup.js';
import { until, ownServer } from '../support/servers.js';

let server: EmbeddedServer;
let shop: AuditedServer;
let load: LoadResult;

/** Runs statements as superuser with triggers off, as a fault of replication would act. */
async function plant(...statements: readonly string[]): Promise<pg.QueryResult> {
  return withClient(server.url(SHOP_DATABASE), async (client) => {
    await client.query('SET session_replication_role = replica; SET search_path = shop');
    let last = await client.query('SELECT 1');
    for (const statement of statements) last = await client.query(statement);
    return last;
  });
}

/** Plants a fault, audits, and takes the fault back. */
async function auditWith(fault: readonly string[], undo: readonly string[]): Promise<AuditReport> {
  await plant(...fault);
  try {
    return await audit(shopAuditPlan([shop]), load.writes);
  } finally {
    await plant(...undo);
  }
}

beforeAll(async () => {
  server = await ownServer({ version: 14, settings: FAST_SETTINGS });
  await createShop((database) => server.url(database), { scale: 0.01 });
  shop = { name: 'source', url: server.url(SHOP_DATABASE, SHOP_ROLE, SHOP_PASSWORD) };
  const running = await Load.start({
    url: shop.url,
    scale: 0.01,
    pgClients: 3,
    postgresClients: 3,
    idleClients: 1,
    paceTps: 2000,
    seed: 7,
  });
  await until(() => running.snapshot().transactions > 400);
  const check = await running.checkSessions();
  expect(check).toEqual({ sessions: 7, versions: { '14.23': 7 }, faults: [] });
  load = await running.stop();
});

afterAll(async () => {
  await server[Symbol.asyncDispose]();
});

test('a load that met no fault is found whole: every acknowledged write exactly once', async () => {
  expect(load.snapshot.failures).toEqual([]);
  expect(load.snapshot.notifications).toMatchObject({ missing: 0, repeated: 0 });
  const report = await audit(shopAuditPlan([shop]), load.writes);
  expect(report.faults).toEqual([]);
  expect(report).toMatchObject({ writable: 'source', lost: 0, duplicated: 0, clean: true });
  expect(report.acknowledged).toBeGreaterThan(100);
  expect(report.found).toBe(report.acknowledged);
  expect(report.registers.checked).toBeGreaterThan(0);
});

test('a row that is gone is a lost write', async () => {
  const { rows } = await plant('SELECT max(token) AS token FROM payment');
  const token = (rows[0] as { token: string }).token;
  const report = await auditWith(
    [
      'CREATE TABLE kept AS SELECT * FROM payment WHERE token = ' + token,
      `DELETE FROM payment WHERE token = ${token}`,
    ],
    ['INSERT INTO payment SELECT * FROM kept', 'DROP TABLE kept'],
  );
  expect(report).toMatchObject({ lost: 1, duplicated: 0, clean: false });
  expect(report.found).toBe(report.acknowledged - 1);
  expect(report.faults).toEqual([expect.stringContaining('acknowledged, and gone')]);
});

test('a row that stands twice is a duplicated write, also in a table without a key', async () => {
  const report = await auditWith(
    ['INSERT INTO visit SELECT * FROM visit WHERE token = (SELECT max(token) FROM visit)'],
    ['DELETE FROM visit WHERE ctid = (SELECT max(ctid) FROM visit)'],
  );
  expect(report).toMatchObject({ lost: 0, duplicated: 1, clean: false });
});

test('a deleted row that stands again is a lost delete', async () => {
  const erased = load.writes.clients
    .map(({ client, states }) => ({ client, sequence: states.indexOf(5) }))
    .find(({ sequence }) => sequence >= 0);
  const token = (erased?.client ?? 0) * 2 ** 40 + (erased?.sequence ?? 0);
  const report = await auditWith(
    [`INSERT INTO cart_line (customer_id, product_id, token) VALUES (1, 1, ${token})`],
    [`DELETE FROM cart_line WHERE token = ${token}`],
  );
  expect(report).toMatchObject({ lost: 1, clean: false });
});

test.each([
  [
    'money',
    'UPDATE account SET balance = balance + 1 WHERE id = 3',
    'UPDATE account SET balance = balance - 1 WHERE id = 3',
  ],
  [
    'an order’s total',
    'UPDATE orders SET total = total + 1 WHERE id = 3',
    'UPDATE orders SET total = total - 1 WHERE id = 3',
  ],
  [
    'stock',
    'UPDATE product SET stock = stock - 1 WHERE id = 3',
    'UPDATE product SET stock = stock + 1 WHERE id = 3',
  ],
])('a broken sum is found: %s', async (_what, fault, undo) => {
  const report = await auditWith([fault], [undo]);
  expect(report.clean).toBe(false);
  expect(report.faults.join()).toContain('invariant broken');
});

test('a trigger that fired a second time on the copy is found by its movements', async () => {
  const report = await auditWith(
    [`INSERT INTO stock_movement (product_id, change, reason) VALUES (1, -1, 'planted'), (1, 1, 'planted')`],
    [`DELETE FROM stock_movement WHERE reason = 'planted'`],
  );
  expect(report.invariants.filter(({ violations }) => violations > 0)).toHaveLength(1);
});

test('a register that fell back is a lost update', async () => {
  const owner = load.writes.registers.find(({ acknowledged }) => acknowledged > 0)?.client ?? -1;
  const report = await auditWith(
    [`UPDATE client_register SET value = value - 1 WHERE client = ${owner}`],
    [`UPDATE client_register SET value = value + 1 WHERE client = ${owner}`],
  );
  expect(report).toMatchObject({ registers: { wrong: 1 }, clean: false });
});

test('two writable sides, and none, are faults', async () => {
  const twice = await audit(shopAuditPlan([shop, { ...shop, name: 'destination' }]), load.writes);
  expect(twice).toMatchObject({ writable: null, clean: false });
  const fence = (sqlState: string): string =>
    `CREATE OR REPLACE FUNCTION barrier() RETURNS trigger LANGUAGE plpgsql AS
     $$ BEGIN RAISE SQLSTATE '${sqlState}' USING MESSAGE = 'refused'; END $$`;
  const tables = ['account', 'orders', 'order_event', 'order_event_rest', 'visit'];
  const raise = tables.map(
    (table) => `CREATE TRIGGER b BEFORE INSERT OR UPDATE OR DELETE ON ${table} EXECUTE FUNCTION barrier()`,
  );
  const lower = tables.map((table) => `DROP TRIGGER IF EXISTS b ON ${table}`);
  const none = await auditWith([fence('UFENC'), ...raise], lower);
  expect(none).toMatchObject({ writable: null, clean: false, found: 0 });
  expect(none.refusals).toEqual([{ server: 'source', probes: 5, sqlStates: ['UFENC'] }]);
  // A refusal for any other reason than the fence is not the fence's.
  const other = await auditWith([fence('P0001'), ...raise], lower);
  expect(other.faults.join()).toContain('answered P0001');
  // A hole in the fence: everything refuses, but for one leaf.
  const hole = await auditWith([fence('UFENC'), ...raise, 'DROP TRIGGER b ON order_event_rest'], lower);
  expect(hole.faults.join()).toContain('with success to: DELETE FROM shop.order_event_rest');
});

test('writes whose answer never came are counted apart, and may stand or not, but not twice', async () => {
  const writes = new WriteLog();
  const [absent, present, twice] = [writes.issue(900), writes.issue(900), writes.issue(900)];
  const refused = writes.issue(900);
  writes.move(refused, 'refused');
  const log = writes.snapshot();
  const all = { clients: [...load.writes.clients, ...log.clients], registers: load.writes.registers };
  await plant(
    `INSERT INTO visit (page, took, token) SELECT 'planted', '0', t FROM unnest(ARRAY[${present}, ${twice}, ${twice}, ${refused}]::bigint[]) t`,
  );
  const report = await audit(shopAuditPlan([shop]), all);
  await plant(`DELETE FROM visit WHERE page = 'planted'`);
  expect(report.unanswered).toEqual({ present: 2, absent: 1 });
  expect(report.duplicated).toBe(2);
  expect(report.faults.join()).toContain('refused, and yet it stands');
  expect(absent).toBeLessThan(present);
});

test('a token moves only as a client can have seen it', () => {
  const writes = new WriteLog();
  const token = writes.issue(3);
  writes.move(token, 'acknowledged');
  expect(() => writes.move(token, 'refused')).toThrow('acknowledged can’t become refused');
  expect(() => writes.move(token + 1, 'acknowledged')).toThrow(RangeError);
});
