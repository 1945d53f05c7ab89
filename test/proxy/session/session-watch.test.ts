import { expect, test } from 'vitest';
import type { Clock } from '../../../src/core/clock.js';
import {
  SessionWatch,
  type SessionActivity,
  type WatchLimits,
} from '../../../src/proxy/session/session-watch.js';

const LIMITS: WatchLimits = {
  clientIdleTimeoutMs: 1000,
  idleInTransactionTimeoutMs: 500,
  queryTimeoutMs: 2000,
  cancelTimeoutMs: 300,
};

function watched(activity: SessionActivity, limits: Partial<WatchLimits> = {}) {
  let nowMs = 0;
  const clock: Clock = { now: () => new Date(0), monotonicMs: () => nowMs, sleep: () => Promise.resolve() };
  const done: string[] = [];
  const session = {
    activity,
    progress: 0,
    cancelLate: () => void done.push('cancelled'),
    terminate: (sqlState: string) => void done.push(sqlState),
  };
  const watch = new SessionWatch(
    () => [session],
    () => ({ ...LIMITS, ...limits }),
    clock,
  );
  const lookAt = (ms: number): string[] => {
    nowMs = ms;
    watch.look();
    return done.splice(0);
  };
  return { session, lookAt };
}

test('a client that does nothing is ended once its time is up, and not before', () => {
  const { lookAt } = watched('idle');
  expect([lookAt(0), lookAt(999), lookAt(1000)]).toEqual([[], [], ['57P05']]);
});

test('whatever a client does begins its time anew, although it is idle again at the next look', () => {
  const { session, lookAt } = watched('idle');
  lookAt(0);
  session.progress += 10;
  expect([lookAt(900), lookAt(1800), lookAt(1900)]).toEqual([[], [], ['57P05']]);
});

test('time left open in a transaction counts from when the transaction was left, not from before it', () => {
  const { session, lookAt } = watched('idle');
  lookAt(0);
  session.activity = 'idle-in-transaction';
  expect([lookAt(900), lookAt(1399), lookAt(1400)]).toEqual([[], [], ['25P03']]);
});

test('a statement is cancelled first, at each look, and its session ended only where that does not help', () => {
  const { session, lookAt } = watched('running');
  lookAt(0);
  expect([lookAt(1999), lookAt(2000), lookAt(2200), lookAt(2300)]).toEqual([
    [],
    ['cancelled'],
    ['cancelled'],
    ['57014'],
  ]);
  const helped = watched('running');
  helped.lookAt(0);
  expect(helped.lookAt(2000)).toEqual(['cancelled']);
  helped.session.progress += 1;
  expect([helped.lookAt(2500), helped.lookAt(4499)]).toEqual([[], []]);
  expect(session.activity).toBe('running');
});

test('statements that follow one another are not one long statement', () => {
  const { session, lookAt } = watched('running');
  for (let ms = 0; ms < 20_000; ms += 500) {
    session.progress += 1;
    expect(lookAt(ms)).toEqual([]);
  }
});

test('behind the gate no time adds up', () => {
  const { session, lookAt } = watched('exempt');
  expect([lookAt(0), lookAt(5000), lookAt(10_000)]).toEqual([[], [], []]);
  session.activity = 'running';
  expect([lookAt(10_500), lookAt(12_000), lookAt(12_500)]).toEqual([[], [], ['cancelled']]);
});

test('a limit of 0 is none, and one that is changed counts at the next look', () => {
  const limits = { clientIdleTimeoutMs: 0 };
  const { lookAt } = watched('idle', limits);
  expect([lookAt(0), lookAt(1e9)]).toEqual([[], []]);
  const open = watched('idle', { clientIdleTimeoutMs: 0 });
  open.lookAt(0);
  expect(open.lookAt(1e6)).toEqual([]);
});
