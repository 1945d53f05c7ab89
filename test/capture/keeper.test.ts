import { expect, test } from 'vitest';
import { SeriesKeeper } from '../../src/capture/keeper.js';
import { PostgresParser } from '../../src/capture/parser.js';
import { SERIES_STORE_DEFAULTS } from '../../src/capture/series-store.js';
import { StatementCache } from '../../src/capture/statements.js';
import { databasePair, until } from '../support/servers.js';

const HOUR_MS = 3_600_000;

test('a change of the catalogs that is seen while they are being read has them read again', async () => {
  await using pair = await databasePair();
  await pair.onSource.query('CREATE TABLE public.first (id int)');
  const nowMs = Date.now();
  const keeper = new SeriesKeeper(
    {
      ...SERIES_STORE_DEFAULTS,
      source: pair.source,
      destination: pair.destination,
      writer: 'test',
      keys: false,
      hotKeysMax: 10,
      flushIntervalMs: HOUR_MS,
      catalogIntervalMs: HOUR_MS,
    },
    new PostgresParser(),
    new StatementCache(),
    nowMs,
  );
  try {
    keeper.tick(nowMs);
    expect(keeper.busy).toBe(true);
    keeper.collector.catalogChanged = true;
    keeper.tick(nowMs);
    await until(() => !keeper.busy);
    expect(keeper.status().relations).toBe(1);
    await pair.onSource.query('CREATE TABLE public.second (id int)');
    // Long enough after the change was seen, and long before the catalogs would be read anyway.
    await until(() => {
      keeper.tick(nowMs + 60_000);
      return keeper.status().relations === 2;
    });
  } finally {
    await keeper.close();
  }
});
