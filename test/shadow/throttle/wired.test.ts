import { expect, test } from 'vitest';
import pg from 'pg';
import { SUPERUSER, SUPERUSER_PASSWORD } from '../../../src/app/demo/embedded-server.js';
import type { ShadowSteering } from '../../../src/core/ports.js';
import { databasePair, until } from '../../support/servers.js';
import { Stack } from '../../support/stack.js';
import { sql } from '../engine-harness.js';

test('what the proxy sees of the application holds the copy back, and an operator sees and changes it', async () => {
  await using pair = await databasePair();
  await sql(
    pair.onSource,
    `CREATE TABLE big (id int PRIMARY KEY, v text); INSERT INTO big SELECT n, repeat('x', 200) FROM generate_series(1, 20000) n;
     CREATE TABLE small (id int PRIMARY KEY); INSERT INTO small VALUES (1)`,
  );
  await using stack = await Stack.start({
    source: pair.source,
    destination: pair.destination,
    // No statement is that fast.
    yaml: `migration: { id: ${pair.source.database} }
shadow: { method: log, chunkRows: 100, copyConcurrency: 1, throttle: { latencyP99Ms: 0.001 } }`,
  });
  const client = new pg.Client({ connectionString: stack.url(SUPERUSER, SUPERUSER_PASSWORD) });
  const ending = new AbortController();
  await until(async () => (await stack.status()).ready.ready, { what: 'the route' });
  await client.connect();
  const working = (async () => {
    while (!ending.signal.aborted) {
      await client.query('SELECT 1');
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  })();
  try {
    const throttle = async () => (await stack.status()).shadow.steering?.throttle;
    let held: Awaited<ReturnType<typeof throttle>>;
    await until(
      async () => {
        held = await throttle();
        return held?.by === 'latency' && held.share < 0.2 && held.latencyP99Ms !== null;
      },
      { what: 'the copy to be held back' },
    );
    expect(held).toMatchObject({ latencyTargetMs: 0.001, baselineP99Ms: null });
    expect(held?.latencyP99Ms).toBeGreaterThan(0.001);
    const steering = await stack.operate<ShadowSteering>('shadow', {
      action: 'prioritise',
      tables: ['public.small'],
    });
    expect(steering.first).toEqual(['public.small']);
    await until(
      async () =>
        (await stack.status()).shadow.tables.find(({ table }) => table === 'public.small')?.done === true,
      { what: 'the table that was asked for' },
    );
    expect((await stack.status()).shadow.phase).toBe('copying');
  } finally {
    ending.abort();
    await working;
    await client.end();
  }
  // Nobody is hurt any more.
  await stack.following();
  await until(async () => (await stack.status()).shadow.steering?.throttle === null, {
    what: 'the throttle to let go',
  });
});
