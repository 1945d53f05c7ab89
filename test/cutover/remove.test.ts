import { expect, test } from 'vitest';
import type { DatabasePair } from '../support/servers.js';
import type { RemoveReport } from '../../src/cutover/settings.js';
import { Stage, TABLES_SQL } from './stage.js';

function remove(stage: Stage, destinationLost = false): Promise<RemoveReport> {
  return stage.coordinator.remove({
    destinationLost,
    stopWriters: () => Promise.resolve(),
    signal: new AbortController().signal,
  });
}

/** Everything on either server that bears Understudy's name. */
async function traces(pair: DatabasePair): Promise<Record<string, readonly string[]>> {
  const found: Record<string, readonly string[]> = {};
  for (const [side, client] of [
    ['source', pair.onSource],
    ['destination', pair.onDestination],
  ] as const) {
    const { rows } = await client.query<{ what: string }>(
      `SELECT 'schema ' || nspname AS what FROM pg_namespace WHERE nspname = 'understudy'
       UNION ALL SELECT 'table ' || tablename FROM pg_tables WHERE schemaname = 'understudy'
       UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgname LIKE 'understudy%'
       UNION ALL SELECT 'publication ' || pubname FROM pg_publication
       UNION ALL SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE database = current_database()
       UNION ALL SELECT 'identity ' || relname FROM pg_class WHERE relreplident = 'f' ORDER BY 1`,
    );
    found[side] = rows.map(({ what }) => what);
  }
  return found;
}

async function leaveTraces({ pair }: Stage): Promise<void> {
  for (const [client, direction] of [
    [pair.onSource, 'fwd'],
    [pair.onDestination, 'rev'],
  ] as const) {
    const name = `understudy_${pair.source.database}_${direction}`;
    await client.query(`CREATE PUBLICATION ${name} FOR TABLE public.plain`);
    await client.query(`SELECT pg_create_logical_replication_slot('${name}', 'pgoutput')`);
    await client.query(`
      CREATE TABLE understudy.identity_change
        (schema_name text, table_name text, before "char", before_index text, PRIMARY KEY (schema_name, table_name));
      INSERT INTO understudy.identity_change VALUES ('public', 'keyless', 'd', NULL);
      ALTER TABLE public.keyless REPLICA IDENTITY FULL`);
  }
}

const SQL = `${TABLES_SQL}; CREATE TABLE public.keyless (note text);`;

test('leaves no trace on either server, may be repeated, and this process cuts over no more', async () => {
  await using stage = await Stage.open({}, SQL);
  await leaveTraces(stage);
  expect((await traces(stage.pair))['source']).toContain('trigger understudy_barrier');
  const report = await remove(stage);
  expect(report.removed).toContain('source: barrier');
  expect(await traces(stage.pair)).toEqual({ source: [], destination: [] });
  expect(await stage.writableAtRest()).toEqual(['source', 'destination']);
  expect((await remove(stage)).removed).toEqual([]);
  await expect(stage.operate('cutover')).rejects.toMatchObject({ code: 'shadow-not-ready' });
  expect(await traces(stage.pair)).toEqual({ source: [], destination: [] });
});

test('is refused while the destination leads, and changes nothing', async () => {
  await using stage = await Stage.open({}, SQL);
  await stage.operate('cutover');
  const before = await traces(stage.pair);
  await expect(remove(stage)).rejects.toMatchObject({ code: 'already-cut-over' });
  await expect(remove(stage, true)).rejects.toMatchObject({ code: 'already-cut-over' });
  expect(await traces(stage.pair)).toEqual(before);
  expect(await stage.writableAtRest()).toEqual(['destination']);
});

test('after a switch there and back the source keeps its epoch, so that an old journal is not believed', async () => {
  await using stage = await Stage.open({}, SQL);
  await stage.operate('cutover');
  await stage.operate('rollback');
  await remove(stage, true);
  const left = await traces(stage.pair);
  expect(left['source']).toEqual(['schema understudy', 'table epoch']);
  expect(left['destination']).toContain('table route');
  const { rows } = await stage.pair.onSource.query<{ epoch: string }>('SELECT epoch FROM understudy.epoch');
  expect(rows).toEqual([{ epoch: '2' }]);
});
