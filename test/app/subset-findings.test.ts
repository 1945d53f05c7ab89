import { expect, test } from 'vitest';
import { subsetFindings } from '../../src/app/subset-findings.js';
import { readSubsetTies } from '../../src/app/subset-ties.js';
import type { SubsetRules } from '../../src/core/ports.js';
import { databasePair } from '../support/servers.js';

test('what subsets would part is named, with the tie', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(`SET search_path = public;
    CREATE TABLE customers (id int PRIMARY KEY);
    CREATE TABLE orders (id serial PRIMARY KEY, customer int REFERENCES customers);
    CREATE TABLE lines (id int PRIMARY KEY, orders int REFERENCES orders);
    CREATE TABLE audit (id int); CREATE TABLE log (id int); CREATE TABLE plain (id int);
    CREATE TABLE days (id int REFERENCES orders) PARTITION BY RANGE (id);
    CREATE TABLE notes (id int REFERENCES orders ON DELETE CASCADE);
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
    'blocker subset-table-missing is in a subset, and the source has no such table',
    'blocker subset-tied is in subset orders, and public.log, in rest, is tied to it (trigger function public.note)',
    'blocker subset-tied is in subset rest, and public.orders, in orders, is tied to it (view public.totals)',
    'blocker subset-trigger-unread is called by a trigger on public.plain, and what it touches can’t be known',
    'info subset-foreign-key is in subset orders and refers to public.customers, in rest (foreign key orders_customer_fkey): the two are switched in one operation',
    'info subset-foreign-key is in subset rest and refers to public.orders, in orders (foreign key days_id_fkey): the two are switched in one operation',
    'info subset-foreign-key is in subset rest and refers to public.orders, in orders (foreign key notes_id_fkey): the two are switched in one operation',
    expect.stringContaining('warning subset-unknown'),
  ]);
  const unenforced = rules.map((rule) => ({ ...rule, foreignKeys: 'unenforced' as const }));
  const keys = (await subsetFindings(pair.onSource, unenforced)).filter(({ check }) =>
    /foreign-key/.test(check),
  );
  expect(keys.map(({ severity, check, object }) => `${severity} ${check} ${object}`).sort()).toEqual([
    'blocker subset-foreign-key-acts public.notes',
    'blocker subset-foreign-key-partitioned public.days',
    'warning subset-foreign-key-unenforced public.orders',
  ]);
  const ties = (of: readonly SubsetRules[]) => readSubsetTies(pair.onSource, pair.onDestination, of);
  expect(await ties(rules)).toHaveLength(3);
  expect(await ties(unenforced)).toEqual([]);
});

test('what runs unnamed with a table ties it: policies, defaults, checks, views’ triggers, sequences drawn in bodies', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(`SET search_path = public;
    CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (id int PRIMARY KEY, n int);
    CREATE TABLE c (id int PRIMARY KEY, n int); CREATE TABLE d (id int PRIMARY KEY, n int);
    CREATE TABLE e (id int PRIMARY KEY, n int); CREATE TABLE plain (id serial PRIMARY KEY, n int CHECK (n > 0));
    CREATE TABLE late (id int DEFAULT nextval('plain_id_seq'::text)); CREATE TABLE heard (id int);
    CREATE TABLE owning (id int); CREATE TABLE gone (id int);
    CREATE TABLE other (id int); CREATE VIEW others AS SELECT id FROM other;
    CREATE SEQUENCE numbers; CREATE SEQUENCE owned OWNED BY owning.id;
    CREATE FUNCTION number() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.id := nextval('public.numbers'); RETURN NEW; END $$;
    CREATE TRIGGER number BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION number();
    CREATE FUNCTION own_number() RETURNS int LANGUAGE sql AS $$ SELECT nextval('owned'::regclass)::int $$;
    ALTER TABLE owning ALTER id SET DEFAULT own_number();
    CREATE FUNCTION any_number() RETURNS int LANGUAGE sql AS $$ SELECT nextval(current_setting('x.y')::regclass)::int $$;
    ALTER TABLE gone ALTER id SET DEFAULT any_number();
    ALTER TABLE b ENABLE ROW LEVEL SECURITY;
    CREATE POLICY mine ON b USING (EXISTS (SELECT FROM others o WHERE o.id = b.id));
    CREATE FUNCTION next_no() RETURNS int LANGUAGE sql AS $$ UPDATE other SET id = id + 1 RETURNING id $$;
    ALTER TABLE c ALTER n SET DEFAULT next_no();
    CREATE FUNCTION inner_ok(int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN EXISTS (SELECT FROM others WHERE id = $1); END $$;
    CREATE FUNCTION ok(int) RETURNS boolean LANGUAGE sql AS $$ SELECT inner_ok($1) $$;
    ALTER TABLE d ADD CONSTRAINT checked CHECK (ok(n));
    CREATE VIEW shown AS SELECT id FROM e;
    CREATE FUNCTION put() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO other VALUES (NEW.id); RETURN NEW; END $$;
    CREATE TRIGGER put INSTEAD OF INSERT ON shown FOR EACH ROW EXECUTE FUNCTION put();
    CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_notify('x', ''); RETURN NEW; END $$;
    CREATE TRIGGER tell AFTER INSERT ON heard FOR EACH ROW EXECUTE FUNCTION tell();
    SET search_path = ''`);
  const tables = ['a', 'b', 'c', 'd', 'e', 'plain', 'late', 'heard', 'owning', 'gone'];
  const rules: readonly SubsetRules[] = [
    {
      subset: 'part',
      tables: tables.map((name) => `public.${name}`),
      foreignKeys: 'together',
      crossing: 'refuse',
    },
  ];
  const found = await subsetFindings(pair.onSource, rules);
  const tied = (table: string, by: string): string =>
    `subset-tied public.${table}: is in subset part, and public.other, in rest, is tied to it (${by})`;
  expect(found.map(({ check, object, message }) => `${check} ${object}: ${message}`).sort()).toEqual(
    [
      'subset-notify public.heard: notifies (trigger tell on public.heard, function public.tell), and what is sent on one side is not heard on the other',
      'subset-tied public.a: is in subset part, and draws from sequence public.numbers (trigger number on public.a, function public.number), which no table owns and which is left with the rest',
      tied('b', 'policy mine on public.b'),
      tied('c', 'default on public.c, function public.next_no'),
      tied('d', 'constraint checked on public.d, function public.ok'),
      tied('e', 'trigger put on public.shown, function public.put'),
      'subset-unread public.gone: has what may touch other tables or sequences, and can’t be known (default on public.gone, function public.any_number; public.any_number: nextval of what is only known when it runs)',
      'subset-unread public.late: has what may touch other tables or sequences, and can’t be known (default on public.late; nextval of what is only looked up when it runs)',
    ].sort(),
  );
});
