import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { BoundedQueue } from '../../src/core/bounded-queue.js';

describe('bounded queue', () => {
  test('a push beyond the bound is refused with the queue’s name, and nothing is lost', () => {
    const queue = new BoundedQueue<number>('held statements', 2);
    queue.push(1);
    queue.push(2);
    expect(() => queue.push(3)).toThrow(expect.objectContaining({ code: 'limit-reached' }));
    expect(() => queue.push(3)).toThrow(/held statements/);
    expect([queue.shift(), queue.shift(), queue.shift()]).toEqual([1, 2, undefined]);
    queue.push(4);
    expect(queue.peek()).toBe(4);
  });

  test('it is empty after clear, and usable', () => {
    const queue = new BoundedQueue<string>('q', 1);
    queue.push('a');
    queue.clear();
    expect(queue.length).toBe(0);
    expect(queue.peek()).toBeUndefined();
    queue.push('b');
    expect(queue.shift()).toBe('b');
  });

  test('whatever is pushed and shifted, it behaves as a plain list of bounded length', () => {
    const operation = fc.oneof(
      { weight: 5, arbitrary: fc.constant('push' as const) },
      { weight: 4, arbitrary: fc.constant('shift' as const) },
      { weight: 1, arbitrary: fc.constant('peek' as const) },
    );
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 200 }),
        fc.array(operation, { maxLength: 1500 }),
        (limit, run) => {
          const queue = new BoundedQueue<number>('q', limit);
          const model: number[] = [];
          for (const [index, step] of run.entries()) {
            if (step === 'push') {
              if (model.length === limit) expect(() => queue.push(index)).toThrow();
              else {
                queue.push(index);
                model.push(index);
              }
            } else if (step === 'shift') expect(queue.shift()).toBe(model.shift());
            else expect(queue.peek()).toBe(model[0]);
            expect(queue.length).toBe(model.length);
          }
        },
      ),
      { numRuns: 50 },
    );
  });
});
