import { expect, test } from 'vitest';
import { ComparePlan } from '../../../src/shadow/follow/compare-plan.js';
import { compareVersions, versionOf } from '../../../src/shadow/follow/row-version.js';
import type { ApplyTable } from '../../../src/shadow/postgres/apply-table.js';
import { parseSnapshot } from '../../../src/shadow/postgres/visibility.js';

const table = (name: string): ApplyTable => ({ name }) as ApplyTable;

test('every table is compared once, the suspected first, then each after its interval', () => {
  const [a, b] = [table('a'), table('b')];
  const plan = new ComparePlan([a, b], 1000);
  plan.suspect(b, 'deleted');
  expect(plan.next(0)).toBe(b);
  plan.began(b);
  plan.ended(b, 10, 10);
  expect(plan.next(10)).toBe(a);
  plan.began(a);
  plan.ended(a, 20, 10);
  expect(plan.wholeMs).toBe(20);
  expect(plan.next(500)).toBeNull();
  expect(plan.next(1010)).toBe(b);
});

test('a table suspected while it is compared stays suspected, and is not compared all the time', () => {
  const a = table('a');
  const plan = new ComparePlan([a], 10_000);
  plan.suspect(a, 'deleted');
  plan.began(a);
  plan.suspect(a, 'deleted again');
  plan.ended(a, 100, 100);
  expect(plan.waiting).toBe(1);
  expect(plan.next(300)).toBeNull();
  expect(plan.nextAtMs()).toBe(500);
  expect(plan.next(500)).toBe(a);
});

test('snapshots are ordered by what they see', () => {
  const at = (text: string) => versionOf(parseSnapshot(text));
  expect(compareVersions(at('10:20:12'), at('10:21:12'))).toBeLessThan(0);
  // The same xmax, and one that was in progress has ended.
  expect(compareVersions(at('10:20:12,14'), at('12:20:14'))).toBeLessThan(0);
  expect(compareVersions(at('12:20:14'), at('12:20:14'))).toBe(0);
  expect(compareVersions(at('5000000000:5000000001:'), at('4294967290:4294967299:'))).toBeGreaterThan(0);
});
