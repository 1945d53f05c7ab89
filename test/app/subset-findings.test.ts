import { expect, test } from 'vitest';
import { subsetFindings } from '../../src/app/subset-findings.js';
import type { SubsetRules } from '../../src/core/ports.js';
import { databasePair } from '../support/servers.js';

test('what subsets would part is named, with the tie', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(`SET search_path = public;
    CREATE TABLE customers (id int PRIMARY KEY);
    CREATE TABLE orders (id serial PRIMARY KEY, customer int REFERENCES customers);
    CREATE TABLE lines (id int PRIMARY KEY, orders int REFERENCES orders);
    CREATE TABLE audit (id int); CREATE TABLE log (id int); CREATE TABLE plain (id int);
    CREATE VIEW totals AS SELECT o.id FROM orders o JOIN audit a USING (id);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO log VALUES (1); RETURN NEW; END $$;
    CREATE TRIGGER note AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION note();
    CREATE FUNCTION build() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'SELECT 1'; RETURN NEW; END $$;
    CREATE TRIGGER build AFTER INSERT ON plain FOR EACH ROW EXECUTE FUNCTION build();
    SET search_path = ''`);
  const rules: readonly SubsetRules[] = [
    {
      subset: 'orders',
      tables: ['public.orders', 'public.lines', 'public.gone'],
      foreignKeys: 'together',
      crossing: 'refuse',
    },
  ];
  expect(await subsetFindings(pair.onSource, [])).toEqual([]);
  const found = await subsetFindings(pair.onSource, rules);
  expect(found.map(({ severity, check, message }) => `${severity} ${check} ${message}`).sort()).toEqual([
    'blocker subset-foreign-key is in subset orders and refers to public.customers, in rest (foreign key orders_customer_fkey): no server could check it while the sides lead one each',
    'blocker subset-table-missing is in a subset, and the source has no such table',
    'blocker subset-tied is in subset orders, and public.log, in rest, is tied to it (trigger function public.note)',
    'blocker subset-tied is in subset rest, and public.orders, in orders, is tied to it (view public.totals)',
    'blocker subset-trigger-unread is called by a trigger on public.plain, and what it touches can’t be known',
    expect.stringContaining('warning subset-unknown'),
  ]);
});
