/** A destination that an operator has declared lost, and that comes back with changes it never got to tell. */
import { expect, test } from 'vitest';
import { startUnderstudy } from 'understudy';
import type { DatabaseEndpoint } from '../../src/core/ports.js';
import { connectControl, quoteIdent } from '../../src/core/postgres.js';
import { databasePair, sharedEndpoint, until } from '../support/servers.js';

function urlOf(endpoint: DatabaseEndpoint): string {
  return `postgres://${endpoint.user}:${endpoint.password ?? ''}@127.0.0.1:${endpoint.port}/${endpoint.database}`;
}

test('what it still has to tell does not overwrite what the source has taken since', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(
    `CREATE TABLE public.t (id int PRIMARY KEY, v text); INSERT INTO public.t VALUES (1, 'a')`,
  );
  await using understudy = await startUnderstudy({
    listen: { port: 0 },
    admin: { port: 0 },
    log: { level: 'silent' },
    source: { url: urlOf(pair.source) },
    destination: { url: urlOf(pair.destination) },
  });
  const shadow = async () => (await understudy.status()).shadow;
  await until(async () => (await shadow()).phase === 'following', { what: 'the shadow to follow' });
  const { signal } = new AbortController();
  expect(await understudy.operate('cutover', {}, () => undefined, signal)).toMatchObject({ outcome: 'done' });

  const admin = await connectControl('destination', sharedEndpoint('destination', 'postgres'), {
    purpose: 'test',
  });
  const database = quoteIdent(pair.destination.database);
  await admin.query(`ALTER DATABASE ${database} ALLOW_CONNECTIONS false`);
  await admin.query(
    `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
     WHERE datname = $1 AND application_name LIKE 'understudy%' AND application_name <> 'understudy test'`,
    [pair.destination.database],
  );
  await until(async () => !(await shadow()).streams.some((stream) => stream.connected), {
    what: 'the streams to be cut',
  });
  await pair.onDestination.query(`UPDATE public.t SET v = 'on the destination, never carried' WHERE id = 1`);

  await understudy.operate('rollback', { destinationLost: true, note: 'gone' }, () => undefined, signal);
  await pair.onSource.query(`UPDATE public.t SET v = 'on the source, acknowledged' WHERE id = 1`);
  await admin.query(`ALTER DATABASE ${database} ALLOW_CONNECTIONS true`);
  await admin.end();

  await until(async () => (await shadow()).phase === 'failed', { what: 'the reverse stream to stop' });
  expect((await shadow()).error?.code).toBe('journal-conflict');
  const { rows } = await pair.onSource.query<{ v: string }>('SELECT v FROM public.t');
  expect(rows).toEqual([{ v: 'on the source, acknowledged' }]);
});
