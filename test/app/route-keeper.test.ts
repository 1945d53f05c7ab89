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
    setRoute: (_subset, route) => told.push(`${route.side} ${route.epoch}`),
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
