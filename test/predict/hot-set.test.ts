import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { HeatTracker, PARTS } from '../../src/predict/heat-tracker.js';
import { hotSet } from '../../src/predict/hot-set.js';
import { seededRandom } from '../../src/predict/random.js';
import { SpaceSaving } from '../../src/predict/space-saving.js';

describe('SpaceSaving', () => {
  test('never says less than the true count, and knows by how much it may say more', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(30), { maxLength: 300 }), (keys) => {
        const counter = new SpaceSaving<number>(8, 1e12);
        const truth = new Map<number, number>();
        for (const key of keys) {
          counter.offer(key, 0);
          truth.set(key, (truth.get(key) ?? 0) + 1);
        }
        expect(counter.size).toBeLessThanOrEqual(8);
        for (const { key, weight, error } of counter.top(8)) {
          expect(weight).toBeGreaterThanOrEqual((truth.get(key) ?? 0) - 1e-9);
          expect(weight - error).toBeLessThanOrEqual((truth.get(key) ?? 0) + 1e-9);
        }
        // Whatever has more than its share of the stream is kept.
        for (const [key, count] of truth)
          if (count > keys.length / 8) expect(counter.weightOf(key)).toBeGreaterThan(0);
      }),
    );
  });

  test('forgets by half-life, also across a silence that no number could count', () => {
    const counter = new SpaceSaving<string>(4, 10);
    counter.offer('old', 0, 8);
    counter.offer('new', 20, 1);
    expect(counter.weightOf('old')).toBeCloseTo(2);
    counter.offer('new', 1e9);
    expect(counter.top(2).map(({ key }) => key)).toEqual(['new', 'old']);
    for (const { weight } of counter.top(2)) expect(Number.isFinite(weight)).toBe(true);
  });
});

describe('the hot set', () => {
  const heats = (values: Readonly<Record<string, number>>): { key: string; heat: number }[] =>
    Object.entries(values).map(([key, heat]) => ({ key, heat }));

  test('is the smallest set with 80 % of the heat', () => {
    const { keys, value } = hotSet(heats({ a: 50, b: 30, c: 15, d: 5 }), new Set(), 1000);
    expect([...keys]).toEqual(['a', 'b']);
    expect(value).toBeCloseTo(0.8);
  });

  test('holds less where not every key is told apart, and is as sure as accesses were counted', () => {
    const some = heats({ a: 50, b: 30 });
    const few = hotSet(some, new Set(), 100, 0.8, 160);
    const many = hotSet(some, new Set(), 10_000, 0.8, 160);
    expect([few.keys.size, few.value, few.low, few.high]).toEqual([2, 0.5, 0.5 - 0.08225, 0.5 + 0.08225]);
    expect(many.high - many.low).toBeCloseTo((few.high - few.low) / 10);
  });

  test('lets a key in only at 1.2 times the border and out only below 0.8 times', () => {
    const before = new Set(['a', 'b']);
    // b and c changed places by little: b stays, c waits outside.
    expect([...hotSet(heats({ a: 50, c: 21, b: 20, d: 9 }), before, 1000).keys].sort()).toEqual([
      'a',
      'b',
      'c',
    ]);
    const small = hotSet(heats({ a: 60, c: 20.5, b: 19.5 }), before, 1000);
    expect(small.keys.has('b')).toBe(true);
    // b has fallen far below the border: it goes.
    expect([...hotSet(heats({ a: 60, c: 30, b: 10 }), before, 1000).keys].sort()).toEqual(['a', 'c']);
  });

  test('flaps less than the bare smallest set when two keys take turns', () => {
    let previous: ReadonlySet<string> = new Set<string>();
    let changes = 0;
    for (let round = 0; round < 20; round++) {
      const up = round % 2 === 0 ? 1 : -1;
      const { keys, terms } = hotSet(heats({ a: 70, b: 15 + up, c: 15 - up }), previous, 1000);
      if (round > 1) changes += (terms['entered'] ?? 0) + (terms['left'] ?? 0);
      previous = keys;
    }
    expect(changes).toBe(0);
  });

  test('of nothing is empty, and says so', () => {
    const none = hotSet([], new Set<string>(), 0);
    expect(none).toMatchObject({ value: 0, confidence: 'none', reason: 'No access has been seen.' });
  });
});

test('the heat tracker follows keys that drift better than the last window alone', () => {
  const random = seededRandom(3);
  const tracker = new HeatTracker<number>(512, 50);
  let covered = 0;
  let persisted = 0;
  let last = new Map<number, number>();
  for (let window = 0; window < 20; window++) {
    const predicted = new Set(tracker.predict().map(({ key }) => key));
    const naive = new Set(
      [...last]
        .sort((a, b) => b[1] - a[1])
        .slice(0, 50)
        .map(([key]) => key),
    );
    const now = new Map<number, number>();
    for (let access = 0; access < 1000; access++) {
      const key = Math.floor(window / 4) * 5 + Math.floor(200 * random() ** 3);
      now.set(key, (now.get(key) ?? 0) + 1);
      tracker.offer(key);
      if (access % (1000 / PARTS) === 99) tracker.closePart();
    }
    if (window > 2) {
      for (const [key, count] of now) {
        if (predicted.has(key)) covered += count;
        if (naive.has(key)) persisted += count;
      }
    }
    last = now;
  }
  expect(covered).toBeGreaterThan(persisted);
});
