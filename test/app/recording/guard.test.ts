/** A replay writes: where it must not, it is refused before anything is sent. */
import { expect, test } from 'vitest';
import { guardTarget } from '../../../src/app/replay/guard.js';
import { databasePair } from '../../support/servers.js';

test('either side of the migration is refused, also by another name; a database of its own is not', async () => {
  await using pair = await databasePair();
  await using copy = await databasePair();
  const sides = { source: pair.source, destination: pair.destination };
  for (const target of [pair.source, pair.destination, { ...pair.source, host: 'localhost' }])
    await expect(guardTarget(target, sides)).rejects.toMatchObject({ code: 'replay-refused' });
  // The same server where the configuration names it otherwise: known by its system identifier.
  const elsewhere = { ...sides, source: { ...pair.source, host: '::ffff:127.0.0.1' } };
  await expect(guardTarget(pair.source, elsewhere)).rejects.toMatchObject({ code: 'replay-refused' });
  await expect(guardTarget(copy.source, sides)).resolves.toBeUndefined();
  await expect(guardTarget(pair.source, null)).resolves.toBeUndefined();
});

test('a database that holds the journal of a migration is refused without any configuration', async () => {
  await using pair = await databasePair();
  await pair.onDestination.query('CREATE SCHEMA understudy');
  await expect(guardTarget(pair.destination, null)).rejects.toMatchObject({ code: 'replay-refused' });
});
