import { expect, test } from 'vitest';
import { readClosure } from '../../src/capture/closure.js';
import { databasePair } from '../support/servers.js';

const SCHEMA = `
  CREATE TABLE public.customer (id int PRIMARY KEY);
  CREATE TABLE public.orders (id int PRIMARY KEY, customer int REFERENCES public.customer, total int);
  CREATE TABLE public.audit (at timestamptz);
  CREATE TABLE public.stock (id int PRIMARY KEY, n int);
  CREATE TABLE public.reservation (id int PRIMARY KEY);
  CREATE TABLE public.price (id int);
  CREATE TABLE public.rate (id int);
  CREATE TABLE public.shelf (id int);
  CREATE VIEW public.prices AS SELECT p.id FROM public.price p JOIN public.rate r USING (id);
  CREATE VIEW public.shelves AS SELECT s.id FROM public.shelf s JOIN public.prices p USING (id);
  CREATE SEQUENCE public.numbers;
  CREATE TABLE public.invoice (n bigint DEFAULT nextval('public.numbers'));
  CREATE TABLE public.credit (n bigint DEFAULT nextval('public.numbers'));
  CREATE TABLE public.event (at date) PARTITION BY RANGE (at);
  CREATE TABLE public.event_2026 PARTITION OF public.event FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
  CREATE TABLE public.inbox (id int);
  CREATE TABLE public.inbox_log (id int);
  CREATE RULE noted AS ON INSERT TO public.inbox DO ALSO INSERT INTO public.inbox_log VALUES (NEW.id);
  CREATE TABLE public.alone (id int);
  CREATE FUNCTION public.note() RETURNS void LANGUAGE sql AS 'INSERT INTO public.audit VALUES (now())';
  CREATE FUNCTION public.on_order() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM public.note();
      NEW.total := (SELECT sum(n) FROM stock);
      RETURN NEW;
    END $$;
  CREATE TRIGGER t BEFORE INSERT ON public.orders FOR EACH ROW EXECUTE FUNCTION public.on_order();
  CREATE FUNCTION public.sweep(t text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN EXECUTE 'DELETE FROM ' || t; DELETE FROM public.reservation WHERE id IN (SELECT id FROM public.stock); END $$;`;

test('what ties tables together is read from the catalogs, and what can’t be is named', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(SCHEMA);
  const closure = await readClosure(pair.onSource);
  const pairs = (ties: typeof closure.bound): string[] =>
    ties
      .map(({ a, b, by }) => `${[a, b].sort().join(' ')}: ${by}`.replaceAll('public.', ''))
      .filter((text, at, all) => all.indexOf(text) === at)
      .sort();
  expect(pairs(closure.foreignKeys)).toEqual(['customer orders: foreign key orders_customer_fkey']);
  expect(pairs(closure.bound)).toEqual(
    [
      'audit orders: trigger function on_order',
      'credit invoice: sequence numbers',
      'event event_2026: inheritance',
      'inbox inbox_log: rule on inbox',
      'orders stock: trigger function on_order',
      'price rate: view prices',
      'price shelf: view shelves',
      'price rate: view shelves',
      'reservation stock: function sweep',
    ].sort(),
  );
  expect(closure.unknown).toEqual(['What this function touches can’t be known (dynamic SQL): public.sweep.']);
  const event = closure.tables.find(({ table }) => table === 'public.event_2026');
  expect(event).toMatchObject({ root: 'public.event', rows: null });
  expect(closure.tables.find(({ table }) => table === 'public.alone')).toMatchObject({ bytes: 0 });
});

test('a trigger whose function, or one that it calls, is not understood in full is named', async () => {
  await using pair = await databasePair();
  const trigger = (name: string, body: string, options = ''): string => `
    CREATE TABLE public.of_${name} (id int);
    CREATE FUNCTION public.${name}() RETURNS trigger LANGUAGE plpgsql ${options} AS $$ BEGIN ${body}; RETURN NEW; END $$;
    CREATE TRIGGER t BEFORE INSERT ON public.of_${name} FOR EACH ROW EXECUTE FUNCTION public.${name}();`;
  await pair.onSource.query(`
    CREATE TABLE public.stock (id int);
    CREATE SCHEMA own;
    CREATE TABLE own.stock (id int);
    CREATE FUNCTION public.queried() RETURNS SETOF int LANGUAGE plpgsql AS
      'BEGIN RETURN QUERY EXECUTE $x$SELECT 1$x$; END';
    CREATE FUNCTION public.opened() RETURNS int LANGUAGE plpgsql AS
      'DECLARE c refcursor; BEGIN OPEN c FOR EXECUTE $x$SELECT 1$x$; RETURN 1; END';
    CREATE FUNCTION public.altering() RETURNS void LANGUAGE sql AS 'ALTER TABLE public.stock ADD extra int';
    ${trigger('of_queried', 'PERFORM public.queried()')}
    ${trigger('of_opened', 'PERFORM 1 WHERE opened() = 1')}
    ${trigger('of_altering', 'PERFORM public.altering()')}
    ${trigger('of_definer', 'PERFORM id FROM stock', 'SECURITY DEFINER')}
    ${trigger('of_role', 'PERFORM id FROM public.stock', 'SET role = none')}
    ${trigger('of_path', 'PERFORM id FROM stock', 'SECURITY DEFINER SET search_path = own')}
    ${trigger('noted', "NEW.id := 1; PERFORM set_config('app.x', '1', true); NOTIFY x", 'SECURITY DEFINER')}`);
  const { unreadTriggers, bound } = await readClosure(pair.onSource);
  expect((unreadTriggers ?? []).map(({ name }) => name.replace('public.of_', '')).sort()).toEqual(
    ['altering', 'definer', 'opened', 'queried', 'role'].sort(),
  );
  expect(bound.filter(({ by }) => by.includes('of_path'))).toEqual([
    { a: 'public.of_of_path', b: 'own.stock', by: 'trigger function public.of_path' },
  ]);
});
