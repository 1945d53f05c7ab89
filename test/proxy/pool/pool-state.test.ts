/** What a client has set follows it from connection to connection, and what can’t be carried keeps it on one. */
import { describe, expect, test } from 'vitest';
import { until } from '../../support/servers.js';
import { send, sqlStates, type RawClient } from '../proxy-support.js';
import { transactionStage } from './pool-stage.js';

const stage = transactionStage();
const { raw, pinned } = stage;
const pid = async (client: RawClient): Promise<string> =>
  (await client.column('SELECT pg_backend_pid()'))[0] ?? '';

describe('session state', () => {
  test('SET follows its client and touches no other', async () => {
    await stage.start({ poolSizeMax: 1 });
    await using one = await raw();
    await using other = await raw();
    await one.run([send.query("SET statement_timeout = '77s'; SET search_path = pg_catalog, public")]);
    await one.run([send.query("SELECT set_config('app.tenant', 'seven', false)")]);
    expect(await other.column('SHOW statement_timeout')).toEqual(['0']);
    expect(await other.column("SELECT current_setting('app.tenant', true)")).not.toEqual(['seven']);
    for (let round = 0; round < 3; round++) {
      expect(await one.column('SHOW statement_timeout')).toEqual(['77s']);
      expect(await one.column('SHOW search_path')).toEqual(['pg_catalog, public']);
      expect(await one.column("SELECT current_setting('app.tenant')")).toEqual(['seven']);
      expect(await other.column('SHOW search_path')).toEqual(['"$user", public']);
    }
    await one.run([send.query('RESET ALL')]);
    expect(await one.column('SHOW statement_timeout')).toEqual(['0']);
    expect(pinned()).toBe(0);
  });

  test('a SET that was rolled back is none', async () => {
    await stage.start({ poolSizeMax: 1 });
    await using one = await raw();
    await one.run([send.query('BEGIN'), send.query('SET work_mem = 123456'), send.query('ROLLBACK')], 3);
    const fresh = (await (await raw()).column('SHOW work_mem'))[0];
    expect(await one.column('SHOW work_mem')).toEqual([fresh]);
  });

  test('what clients follow is told them when their backend changes', async () => {
    await stage.start({ poolSizeMax: 1 });
    await using one = await raw();
    await using other = await raw();
    await one.run([send.query("SET TimeZone = 'Asia/Tokyo'")]);
    expect((await other.run([send.query('SELECT 1')])).map(({ type }) => type).join('')).toBe('TDCZ');
    const told = await one.run([send.query('SELECT now()')]);
    expect(told.map(({ type }) => type).join('')).toBe('TDCZ');
    expect(await one.column('SHOW TimeZone')).toEqual(['Asia/Tokyo']);
  });

  test('a role follows its client', async () => {
    await stage.start({ poolSizeMax: 1 });
    await using one = await raw();
    await using other = await raw();
    await one.run([send.query('SET ROLE pg_monitor')]);
    expect(await other.column('SELECT current_user')).toEqual(['postgres']);
    expect(await one.column('SELECT current_user')).toEqual(['pg_monitor']);
  });

  test('what a sequence gave one client is not told another', async () => {
    await stage.start({ poolSizeMax: 1 });
    await using one = await raw();
    await using other = await raw();
    await one.run([send.query('CREATE SEQUENCE given')]);
    await one.run([send.query("SELECT nextval('given')")]);
    expect(sqlStates(await other.run([send.query('SELECT lastval()')]))).toEqual(['55000']);
    // It is pinned now, and its connection none of the pool's one.
    await until(() => pinned() === 1);
    expect(sqlStates(await one.run([send.query("SELECT currval('given')")]))).toEqual(['55000']);
  });

  test.each([
    ['LISTEN', 'LISTEN news'],
    ['a temporary table', 'CREATE TEMP TABLE scratch (a int)'],
    ['an advisory lock', 'SELECT pg_advisory_lock(4711)'],
    ['a cursor WITH HOLD', 'DECLARE c CURSOR WITH HOLD FOR SELECT 1'],
    ['PREPARE', 'PREPARE p AS SELECT 1'],
    ['LOAD', "LOAD 'plpgsql'"],
    ['currval', "SELECT 1 WHERE false AND currval('nowhere') = 1"],
    ['a block that may have done so', 'DO $$ BEGIN PERFORM pg_advisory_lock(4712); END $$'],
  ])('%s pins its client', async (_what, sql) => {
    await using client = await raw();
    await using other = await raw();
    await client.run([send.parse('SELECT $1::int', 'mine'), send.sync()]);
    await client.run([send.query(sql)]);
    await until(() => pinned() === 1);
    const mine = await pid(client);
    for (let round = 0; round < 3; round++) {
      expect(await pid(client)).toBe(mine);
      expect(await pid(other)).not.toBe(mine);
    }
    // Its prepared statements are under its own names there.
    const messages = await client.run([send.bind(['3'], 'mine'), send.execute(), send.sync()]);
    expect(messages.map(({ type }) => type).join('')).toBe('2DCZ');
    expect(Object.values(stage.running.proxy.status().pinned)).toEqual([1]);
    await client[Symbol.asyncDispose]();
    await until(() => pinned() === 0);
  });

  test.each([
    [
      'a temporary table of its transaction',
      ['BEGIN', 'CREATE TEMP TABLE s (a int) ON COMMIT DROP', 'COMMIT'],
    ],
    ['an advisory lock let go of', ['SELECT pg_advisory_lock(1), pg_advisory_unlock(1)']],
    ['a harmless block', ['DO $$ BEGIN PERFORM 1; END $$']],
    ['SET LOCAL', ['BEGIN', 'SET LOCAL work_mem = 999', 'COMMIT']],
    ['UNLISTEN', ['UNLISTEN *']],
  ])('%s does not', async (_what, statements) => {
    await using client = await raw();
    for (const sql of statements) await client.run([send.query(sql)]);
    expect(await client.column('SELECT 1')).toEqual(['1']);
    expect(pinned()).toBe(0);
  });

  test('a pinned client gets its notifications', async () => {
    await using client = await raw();
    await using other = await raw();
    await client.run([send.query('LISTEN news')]);
    await other.run([send.query("NOTIFY news, 'hot'")]);
    await until(() => client.types.includes('A'));
  });
});
