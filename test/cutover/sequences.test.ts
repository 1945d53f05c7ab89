import { expect, test } from 'vitest';
import type { SequenceState } from '../../src/core/ports.js';
import {
  carrySequence,
  carrySequences,
  observedRate,
  readSequences,
  sample,
  setSequencesSql,
  type SequencePlan,
} from '../../src/cutover/sequences.js';
import { Connections } from '../../src/cutover/session.js';
import { databasePair } from '../support/servers.js';

const ASCENDING: SequenceState = {
  schema: 'public',
  name: 's',
  lastValue: 100n,
  isCalled: true,
  increment: 1n,
  minValue: 1n,
  maxValue: 9_223_372_036_854_775_807n,
  cache: 1n,
  cycle: false,
};
const DESCENDING: SequenceState = {
  ...ASCENDING,
  lastValue: -100n,
  increment: -5n,
  minValue: -9_223_372_036_854_775_808n,
  maxValue: -1n,
};
const UNUSED: SequenceState = { ...ASCENDING, lastValue: 1n, isCalled: false };

test('a sequence goes forward by the margin, in its own direction', () => {
  expect(carrySequence(ASCENDING, UNUSED, 32n)).toMatchObject({ lastValue: 132n, isCalled: true });
  expect(carrySequence(DESCENDING, { ...DESCENDING, lastValue: -1n, isCalled: false }, 10n)).toMatchObject({
    lastValue: -150n,
    isCalled: true,
  });
});

test('the cache counts as a margin', () => {
  expect(carrySequence({ ...ASCENDING, cache: 500n }, UNUSED, 32n).lastValue).toBe(600n);
});

test('the further of both sides wins, in either direction', () => {
  expect(carrySequence(ASCENDING, { ...ASCENDING, lastValue: 1000n }, 10n).lastValue).toBe(1010n);
  expect(carrySequence(DESCENDING, { ...DESCENDING, lastValue: -1000n }, 10n).lastValue).toBe(-1050n);
  // Not called at 100 is behind called at 100: its next value is 100 itself.
  expect(carrySequence({ ...ASCENDING, isCalled: false }, ASCENDING, 10n)).toMatchObject({
    lastValue: 110n,
    isCalled: true,
  });
});

test('an unused sequence stays as it is', () => {
  expect(carrySequence(UNUSED, UNUSED, 32n)).toMatchObject({ lastValue: 1n, isCalled: false });
});

test('no margin leads past a bound, nor exhausts a sequence that had values left', () => {
  const bounded = (maxValue: bigint): SequencePlan =>
    carrySequence({ ...ASCENDING, maxValue }, { ...UNUSED, maxValue }, 32n);
  expect(bounded(120n)).toMatchObject({ lastValue: 100n, isCalled: true });
  expect(bounded(120n).note).toContain('near its bound');
  expect(bounded(133n).lastValue).toBe(132n);
  expect(bounded(132n).lastValue).toBe(100n);
  const falling = { ...DESCENDING, minValue: -110n };
  expect(carrySequence(falling, falling, 10n).lastValue).toBe(-100n);
  const spent = { ...ASCENDING, lastValue: ASCENDING.maxValue };
  expect(carrySequence(spent, UNUSED, 32n)).toMatchObject({ lastValue: ASCENDING.maxValue, isCalled: true });
});

test('a cycling sequence is carried exactly, whatever the other side says, and reported', () => {
  const cycling = { ...ASCENDING, cycle: true };
  const plan = carrySequence(cycling, { ...cycling, lastValue: 5000n }, 32n);
  expect(plan).toMatchObject({ lastValue: 100n, isCalled: true });
  expect(plan.note).toContain('cycles');
});

test('the observed rate is values per second, whatever the increment', () => {
  const before = sample(1000, [DESCENDING]);
  expect(observedRate(before, { ...DESCENDING, lastValue: -600n }, 1500)).toBe(200n);
  expect(observedRate(before, DESCENDING, 1500)).toBe(0n);
  expect(observedRate(before, { ...DESCENDING, name: 'other' }, 1500)).toBe(0n);
  expect(observedRate(before, { ...DESCENDING, lastValue: -50n }, 1500)).toBe(0n);
});

test('a sequence that the other side lacks is named', () => {
  expect(() => carrySequences([ASCENDING], [], () => 1n)).toThrow(
    expect.objectContaining({ code: 'catalog-changed', message: expect.stringContaining('"public"."s"') }),
  );
});

test('states travel between real servers: identity, descending, cycling, bounded, unused', async () => {
  await using pair = await databasePair();
  const sql = `
    CREATE TABLE public.t (id int GENERATED ALWAYS AS IDENTITY, other serial);
    CREATE SEQUENCE public.down INCREMENT -2 MINVALUE -1000 MAXVALUE -1 START -1;
    CREATE SEQUENCE public.around MAXVALUE 5 CYCLE;
    CREATE SEQUENCE public.bounded MAXVALUE 10;
    CREATE SEQUENCE public.unused START 7;
    CREATE SCHEMA "od'd"; CREATE SEQUENCE "od'd"."Se q";`;
  await pair.onSource.query(sql);
  await pair.onDestination.query(sql);
  await pair.onSource.query(`INSERT INTO public.t SELECT FROM generate_series(1, 10);
    SELECT nextval('public.down') FROM generate_series(1, 4);
    SELECT nextval('public.around') FROM generate_series(1, 7);
    SELECT nextval('public.bounded') FROM generate_series(1, 9);
    SELECT nextval('"od''d"."Se q"');`);
  const connections = new Connections(pair, 3000);
  const source = await connections.open('source', 'test');
  const destination = await connections.open('destination', 'test');
  const plans = carrySequences(await readSequences(source), await readSequences(destination), () => 20n);

  await destination.batch(setSequencesSql(plans, 'false'));
  expect(await next(pair.onDestination, 'unused')).toBe('7');
  await pair.onDestination.query(`SELECT setval('public.unused', 7, false)`);

  await destination.batch(setSequencesSql(plans));
  const inserted = await pair.onDestination.query<{ id: string; other: string }>(
    'INSERT INTO public.t DEFAULT VALUES RETURNING id, other',
  );
  expect(inserted.rows).toEqual([{ id: '31', other: '31' }]);
  expect(await next(pair.onDestination, 'down')).toBe('-49');
  expect(await next(pair.onDestination, 'around')).toBe('3');
  expect(await next(pair.onDestination, 'bounded')).toBe('10');
  expect(await next(pair.onDestination, 'unused')).toBe('7');
  const odd = await pair.onDestination.query<{ v: string }>(`SELECT nextval('"od''d"."Se q"') AS v`);
  expect(odd.rows[0]?.v).toBe('22');
  await connections.end();
});

async function next(
  client: { query: (sql: string) => Promise<{ rows: { v: string }[] }> },
  name: string,
): Promise<string | undefined> {
  return (await client.query(`SELECT nextval('public.${name}') AS v`)).rows[0]?.v;
}

test('a wider sequence takes its margin past the narrower one’s bound, and none is set past its own', () => {
  const narrow = { ...ASCENDING, maxValue: 1000n, lastValue: 999n };
  const wide = { ...ASCENDING, maxValue: 9_223_372_036_854_775_807n, lastValue: 1n, isCalled: false };
  expect(carrySequence(narrow, wide, 32n)).toMatchObject({ lastValue: 1031n });
  const past = carrySequence({ ...wide, lastValue: 5000n, isCalled: true }, narrow, 32n);
  expect(past).toMatchObject({ lastValue: 1000n, isCalled: true });
  expect(past.note).toContain('bound');
});
