/** What may be asked for while it is not known which side leads. */
import { expect, test } from 'vitest';
import { Operations } from '../../src/app/operations.js';
import { UnderstudyError } from '../../src/core/errors.js';
import { silentLog } from '../../src/core/log.js';
import type { ShadowControl } from '../../src/core/ports.js';
import type { CutoverCoordinator } from '../../src/cutover/coordinator.js';

test('a destination that is gone can be given up by a process that never learnt who led', async () => {
  let settled = 0;
  const operations = new Operations({
    coordinator: { abandonDestination: () => Promise.resolve(3) } as unknown as CutoverCoordinator,
    shadow: {} as ShadowControl,
    subsets: ['all'],
    direction: () => 'forward',
    parted: () => false,
    requireRoute: () => {
      throw new UnderstudyError('route-unknown', 'a fence stands, and the journal can’t be read');
    },
    retireShadow: () => Promise.resolve(),
    retireCapture: () => Promise.resolve(),
    onSettled: () => {
      settled += 1;
      return Promise.resolve();
    },
    log: silentLog,
  });
  const ask = (operation: 'cutover' | 'rollback', options: { readonly destinationLost?: boolean }) =>
    operations.operate(operation, options, () => undefined);
  const unknown = { code: 'route-unknown' };
  await expect(ask('cutover', {})).rejects.toMatchObject(unknown);
  await expect(ask('rollback', {})).rejects.toMatchObject(unknown);
  await expect(ask('cutover', { destinationLost: true })).rejects.toMatchObject(unknown);
  expect(await ask('rollback', { destinationLost: true })).toEqual({ epoch: 3, destinationLost: true });
  expect(settled).toBe(1);
});
