import { expect, test } from 'vitest';
import { RouteKeeper } from '../../src/app/route-keeper.js';
import { systemClock } from '../../src/core/clock.js';
import { UnderstudyError } from '../../src/core/errors.js';
import { silentLog } from '../../src/core/log.js';
import type { Recovery } from '../../src/cutover/settings.js';
import { until } from '../support/servers.js';

const SOURCE_LEADS: Recovery = { route: { side: 'source', epoch: 0 }, action: 'none', finalized: false };

function keeper(recover: () => Promise<Recovery>) {
  const told: string[] = [];
  const made = new RouteKeeper({
    recover,
    setRoute: (_subset, route, unserved) =>
      told.push(`${route.side} ${route.epoch}${unserved === undefined ? '' : ` ${unserved}`}`),
    setUnavailable: (_subset, refusal) =>
      told.push(refusal === null ? 'available' : `${refusal.sqlState} ${refusal.message}`),
    log: silentLog,
    clock: systemClock,
    backoffMs: { first: 1, most: 2 },
  });
  return { made, told };
}

test('clients are turned away until the route is known, and the asking goes on by itself', async () => {
  let attempts = 0;
  const { made, told } = keeper(() => {
    attempts++;
    return attempts < 4
      ? Promise.reject(new UnderstudyError('source-unreachable', 'postgres://secret-host'))
      : Promise.resolve(SOURCE_LEADS);
  });
  await made.start();
  expect(made.problem?.code).toBe('source-unreachable');
  expect(made.recovery).toBeUndefined();
  expect(await made.known()).toEqual(SOURCE_LEADS);
  expect(told.slice(-2)).toEqual(['source 0', 'available']);
  expect(told.filter((line) => line.startsWith('57P03')).length).toBeGreaterThan(1);
  expect(told.join()).not.toContain('secret-host');
  expect(made.problem).toBeUndefined();
});

test('of several subsets those that are found are served, the others refused by name, and asking goes on', async () => {
  const part = (subset: string, side: 'source' | 'destination') => ({
    subset,
    route: { side, epoch: 1 },
    action: 'none' as const,
  });
  const partial: Recovery = {
    ...SOURCE_LEADS,
    subsets: [{ ...part('orders', 'destination'), unknown: true }, part('rest', 'source')],
    missing: new UnderstudyError('route-unknown', 'postgres://secret-host'),
  };
  const whole: Recovery = {
    ...SOURCE_LEADS,
    subsets: [part('orders', 'destination'), part('rest', 'source')],
  };
  let answers: readonly (Recovery | Error)[] = [partial, new Error('nobody answers'), partial, whole];
  const { made, told } = keeper(() => {
    const [next, ...later] = answers;
    answers = later;
    return next === undefined || next instanceof Error
      ? Promise.reject(next ?? new Error())
      : Promise.resolve(next);
  });
  await made.start();
  expect([made.recovery, made.side, made.problem?.code]).toEqual([undefined, 'source', 'route-unknown']);
  const refusal = 'destination 1 subset orders can’t be served: which database may be written is not known';
  expect(told.slice(1)).toEqual([expect.stringContaining(refusal), 'source 1', 'available']);
  expect(await made.known()).toEqual(whole);
  expect(told.filter((line) => line.startsWith('57P03'))).toHaveLength(1);
  expect(told.join()).not.toContain('secret-host');
  expect(told.slice(-3)).toEqual(['destination 1', 'source 1', 'available']);
});

test('a fence with an unreadable journal is never guessed away', async () => {
  let attempts = 0;
  const { made, told } = keeper(() => {
    attempts++;
    return Promise.reject(new UnderstudyError('route-unknown', 'a fence stands'));
  });
  await made.start();
  await until(() => attempts > 5);
  made.stop();
  expect(told.every((line) => line.startsWith('57P03'))).toBe(true);
});

test('a known route stays in force when asking again fails', async () => {
  const answers = [
    Promise.resolve(SOURCE_LEADS),
    new Promise<Recovery>((_resolve, reject) =>
      setImmediate(() => reject(new UnderstudyError('source-unreachable', 'gone'))),
    ),
    Promise.resolve({ ...SOURCE_LEADS, route: { side: 'destination' as const, epoch: 1 } }),
  ];
  const { made, told } = keeper(() => answers.shift() ?? Promise.reject(new Error('asked too often')));
  await made.start();
  await made.refresh();
  expect(told.slice(-2)).toEqual(['source 0', 'available']);
  await Promise.all([made.refresh(), made.refresh()]);
  expect(told.at(-1)).toBe('destination 1');
});

test('confirming asks anew until it is told: what was asked before doesn’t count', async () => {
  const destinationLeads = { ...SOURCE_LEADS, route: { side: 'destination' as const, epoch: 1 } };
  let answerFirst: (recovery: Recovery) => void = () => undefined;
  const answers: (() => Promise<Recovery>)[] = [
    () => Promise.resolve(SOURCE_LEADS),
    () => new Promise((resolve) => (answerFirst = resolve)),
    () => Promise.reject(new UnderstudyError('route-unknown', 'another process is in the middle of it')),
    () => Promise.resolve(destinationLeads),
  ];
  const { made, told } = keeper(() => answers.shift()?.() ?? Promise.reject(new Error('asked too often')));
  await made.start();
  const asking = made.refresh();
  const confirmed = made.confirm();
  answerFirst(SOURCE_LEADS);
  await asking;
  await confirmed;
  expect(told.at(-1)).toBe('destination 1');
  expect([answers.length, made.problem]).toEqual([0, undefined]);
});
