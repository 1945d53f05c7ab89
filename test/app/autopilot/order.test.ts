/** A plan made of what was learned before the first row is copied says what is copied first. */
import { expect, test } from 'vitest';
import { PostgresSeriesStore, SERIES_CONNECTION } from '../../../src/capture/series-store.js';
import { connectControl } from '../../../src/core/postgres.js';
import { HOUR_MS } from '../../../src/predict/series.js';
import { databasePair, until } from '../../support/servers.js';
import { Stack } from '../../support/stack.js';
import { emptyBatch, interval, point } from '../plan/shop-series.js';

test('the hottest table comes first in a copy, and the reason is recorded', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(`
    CREATE TABLE public.big (id int PRIMARY KEY, v text);
    INSERT INTO public.big SELECT i, 'x' FROM generate_series(1, 20000) i;
    CREATE TABLE public.warm (id int PRIMARY KEY); INSERT INTO public.warm SELECT generate_series(1, 500);
    CREATE TABLE public.hot (id int PRIMARY KEY); INSERT INTO public.hot SELECT generate_series(1, 500);
    ANALYZE`);
  const store = new PostgresSeriesStore(() =>
    connectControl('destination', pair.destination, SERIES_CONNECTION),
  );
  const thisHourMs = Math.floor(Date.now() / HOUR_MS) * HOUR_MS;
  const hours = Array.from({ length: 30 }, (_, back) => thisHourMs - (back + 1) * HOUR_MS);
  await store.append({
    ...emptyBatch('kept/0'),
    points: hours.flatMap((hour) => [
      point('public.hot', hour, 7200, 3600),
      point('public.warm', hour, 360, 0),
      point('public.big', hour, 36, 0),
    ]),
    intervals: hours.map((hour) => interval(hour, 11_000)),
  });
  await store.close();
  await using stack = await Stack.start({
    ...pair,
    yaml: 'autopilot: { checkIntervalMs: 100 }\nshadow: { chunkRows: 20, copyConcurrency: 1 }',
  });
  await until(async () => (await stack.status()).shadow.steering?.first?.[0] === 'public.hot', {
    timeoutMs: 60_000,
    what: `the order\n${stack.output}`,
  });
  const { rows } = await pair.onDestination.query<{ reason: string; figures: string }>(
    `SELECT reason, figures FROM understudy.decision WHERE kind = 'tune' AND code = 'copy-order'`,
  );
  expect(rows[0]?.reason).toMatch(/^The hottest .* come first: public\.hot, public\.warm/);
  expect(JSON.parse(rows[0]?.figures ?? '{}')).toMatchObject({ 'public.hot': expect.any(Number) as number });
});
