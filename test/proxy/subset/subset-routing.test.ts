/** Subsets on different sides: each statement goes to its own, and what spans both is refused. */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { databasePair, until, type DatabasePair } from '../../support/servers.js';
import { RawClient, send, sqlStates, statuses, type RunningProxy } from '../proxy-support.js';
import { makeSides, startRouted } from './subset-support.js';

describe.each(['session', 'transaction'] as const)('in %s mode', (poolMode) => {
  let pair: DatabasePair;
  let running: RunningProxy;

  beforeAll(async () => {
    pair = await databasePair();
    await makeSides(pair);
    running = await startRouted(pair, undefined, { poolMode, poolSizeMax: 2 });
  });
  afterAll(async () => {
    await running[Symbol.asyncDispose]();
    await pair[Symbol.asyncDispose]();
  });

  const raw = (parameters: Record<string, string> = {}): Promise<RawClient> =>
    RawClient.connect(running.port, running.database, parameters);

  async function connected(): Promise<pg.Client & AsyncDisposable> {
    const client = new pg.Client({ connectionString: running.url });
    await client.connect();
    return Object.assign(client, { [Symbol.asyncDispose]: () => client.end() });
  }

  const value = async (client: pg.Client, sql: string, values: unknown[] = []): Promise<unknown> => {
    const { rows } = await client.query<Record<string, unknown>>({
      text: sql,
      values,
      rowMode: 'array',
    } as never);
    return (rows[0] as unknown as unknown[] | undefined)?.[0];
  };
  const refused = { code: '0A000' };

  describe('a statement', () => {
    test.each([
      [
        'standard_conforming_strings = off',
        "SELECT '\\', note FROM a1",
        'standard_conforming_strings is off',
      ],
      ["client_encoding = 'SJIS'", "SELECT 'é', note FROM a1", 'SJIS can’t be read'],
    ])('SET %s shuts nobody in: what can be read alike is served', async (setting, unclear, why) => {
      await using client = await connected();
      await client.query(`SET ${setting}`);
      expect(await value(client, 'SELECT note FROM a1')).toBe('destination');
      await expect(client.query(unclear)).rejects.toThrow(why);
      expect(await value(client, 'SELECT note FROM b1')).toBe('source');
      await client.query('RESET ALL');
      expect(await value(client, "SELECT note || '\\' FROM a1")).toBe('destination\\');
    });

    test('a setting by which it is read is not changed in front of it', async () => {
      await using client = await raw();
      const [set, scan] = ['SET standard_conforming_strings = off', "SELECT '\\', note FROM a1"];
      client.write(
        send.parse(set),
        send.bind(),
        send.execute(),
        send.parse(scan),
        send.bind(),
        send.execute(),
        send.sync(),
      );
      await client.readies(1);
      expect(sqlStates(client.messages)).toEqual(['0A000']);
    });

    test.each([false, true])(
      'in the middle of a COPY from the client ends the connection (extended: %s)',
      async (extended) => {
        await using client = await raw();
        const copy = 'COPY a1 FROM STDIN';
        if (extended) client.write(send.parse(copy), send.bind(), send.execute(), send.flush());
        else client.write(send.query(copy));
        await until(() => client.messages.some(({ type }) => type === 'G'));
        client.write(extended ? send.parse('SELECT note FROM a1') : send.query('SELECT note FROM a1'));
        await until(() => client.closed);
        expect(sqlStates(client.messages)).toEqual(['08P01']);
      },
    );

    test('goes to the side of its table, however it names it', async () => {
      await using client = await connected();
      expect(await value(client, 'SELECT note FROM a1')).toBe('destination');
      expect(await value(client, 'SELECT note FROM b1')).toBe('source');
      expect(await value(client, 'SELECT note FROM r1 WHERE id = $1', [1])).toBe('source');
      expect(await value(client, 'SELECT note FROM a_view WHERE id = $1', [1])).toBe('destination');
      expect(await value(client, 'WITH b1 AS (SELECT note FROM a1) SELECT note FROM b1')).toBe('destination');
      expect(await value(client, 'SELECT (SELECT note FROM b1)')).toBe('source');
      expect(await value(client, 'SELECT note FROM a2_1')).toBe('destination');
      expect(await value(client, 'SELECT a_note()')).toBe('destination');
      expect(await value(client, 'SELECT b_count()')).toBe('1');
      expect(await value(client, "SELECT nextval('a1_id_seq')::text")).toMatch(/^\d+$/);
      await client.query('SET search_path = moved, public');
      expect(await value(client, 'SELECT note FROM b1')).toBe('destination moved');
      await client.query('BEGIN; SET LOCAL search_path = public; COMMIT');
      expect(await value(client, 'SELECT note FROM b1')).toBe('destination moved');
      await client.query('RESET search_path');
      expect(await value(client, 'SELECT note FROM b1')).toBe('source');
    });

    test('prepared by name is sent where it belongs each time it is bound', async () => {
      await using client = await connected();
      const ofA = { name: 'of_a', text: 'SELECT note FROM a1 WHERE id = $1', values: [1] };
      const ofB = { name: 'of_b', text: 'SELECT note FROM b1 WHERE id = $1', values: [1] };
      for (let round = 0; round < 3; round++) {
        expect((await client.query<{ note: string }>(ofA)).rows[0]?.note).toBe('destination');
        expect((await client.query<{ note: string }>(ofB)).rows[0]?.note).toBe('source');
      }
      await client.query('PREPARE by_sql AS SELECT note FROM a1');
      expect(await value(client, 'EXECUTE by_sql')).toBe('destination');
      expect(await value(client, 'SELECT note FROM r1')).toBe('source');
      expect(await value(client, 'EXECUTE by_sql')).toBe('destination');
    });

    test('finds the session’s settings on either side', async () => {
      await using client = await connected();
      await client.query("SET app.tenant = 'x'");
      expect(await value(client, "SELECT note || current_setting('app.tenant') FROM a1")).toBe(
        'destinationx',
      );
      await client.query("SET app.tenant = 'y'");
      expect(await value(client, "SELECT note || current_setting('app.tenant') FROM b1")).toBe('sourcey');
      expect(await value(client, "SELECT note || current_setting('app.tenant') FROM a1")).toBe(
        'destinationy',
      );
    });

    test('that spans sides, or that can’t be read, is refused, and the session goes on', async () => {
      await using client = await connected();
      const refusals: [string, RegExp][] = [
        ['SELECT 1 FROM a1, b1', /spans subsets on different sides: a is on the destination, b is not/],
        ['INSERT INTO a1 (note) SELECT note FROM r1', /spans/],
        ['UPDATE b1 SET note = note; UPDATE a1 SET note = note', /spans/],
        ['SELECT b_count() FROM a1', /spans/],
        ['SELECT dynamic()', /public\.dynamic touches can’t be known \(dynamic SQL\)/],
        ['SELECT * FROM nowhere', /relation nowhere is not known/],
        ['DO $$ BEGIN NULL; END $$', /DO runs can’t be known/],
        ['CREATE TEMP TABLE t (id int)', /schema must not be changed/],
        ['LISTEN x', /LISTEN would hear one side only/],
        ['SELECT pg_advisory_lock(1)', /pg_advisory_lock locks on one side only/],
        ["SELECT query_to_xml('SELECT 1', true, true, '')", /runs SQL/],
        ["COMMIT PREPARED 'x'", /prepared transactions/],
        ['SET search_path = moved; SELECT note FROM b1', /sets what names mean/],
      ];
      for (const [sql, message] of refusals) {
        await expect(client.query(sql), sql).rejects.toMatchObject({
          ...refused,
          message: expect.stringMatching(message) as string,
        });
        if (!sql.includes(';')) {
          const extended = { text: sql, values: [], queryMode: 'extended' };
          await expect(client.query(extended as never), sql).rejects.toMatchObject(refused);
        }
        if (sql.startsWith('SET')) await client.query('RESET search_path');
      }
      expect(await value(client, 'SELECT note FROM a1')).toBe('destination');
      const { rows } = await pair.onSource.query("SELECT count(*) AS n FROM public.a1 WHERE note = 'source'");
      expect(rows).toEqual([{ n: '1' }]);
    });
  });

  describe('a transaction', () => {
    test('has the side of its first table, wherever it was begun', async () => {
      await using client = await connected();
      for (const [table, side] of [
        ['a1', 'destination'],
        ['b1', 'source'],
        ['a1', 'destination'],
      ] as const) {
        await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
        await client.query('SAVEPOINT one');
        await client.query("SET LOCAL app.tenant = 'of this transaction'");
        await client.query({ text: "SELECT set_config('app.other', $1, true)", values: ['too'] });
        await client.query({ name: 'nothing', text: 'SELECT 1' });
        expect(await value(client, `SELECT note FROM ${table}`)).toBe(side);
        expect(
          await value(
            client,
            `SELECT concat_ws(',', current_setting('app.tenant'), current_setting('app.other'),
             current_setting('transaction_isolation'))`,
          ),
        ).toBe('of this transaction,too,repeatable read');
        await client.query(`UPDATE ${table} SET note = note || '!'`);
        await client.query('ROLLBACK TO one');
        expect(await value(client, `SELECT note FROM ${table}`)).toBe(side);
        await client.query('COMMIT');
      }
      expect(await value(client, "SELECT current_setting('app.tenant')")).toBe('');
    });

    test('that crosses fails there and then, by either protocol, and nothing of it stays', async () => {
      await using client = await connected();
      for (const extended of [false, true]) {
        const run = (sql: string): Promise<pg.QueryResult> =>
          client.query((extended ? { text: sql, values: [], queryMode: 'extended' } : sql) as never);
        await run('BEGIN');
        await run("INSERT INTO a1 VALUES (50, 'lost')");
        await expect(run("INSERT INTO b1 VALUES (50, 'lost')")).rejects.toMatchObject({
          ...refused,
          message: expect.stringMatching(
            /^statement [0-9a-f]{16} touches subset b on the source, but its transaction is bound to the destination by subset a$/,
          ) as string,
        });
        await expect(run('SELECT note FROM a1')).rejects.toMatchObject({ code: '25P02' });
        expect((await run('COMMIT')).command).toBe('ROLLBACK');
        expect(await value(client, 'SELECT count(*)::int FROM a1 WHERE id = 50')).toBe(0);
        await run('BEGIN');
        await run('SELECT now()');
        const here = await value(client, 'SELECT note FROM b1').then(
          () => 'source',
          () => 'refused',
        );
        // The time was the other side's: the transaction stays there.
        expect(here).toBe('refused');
        await run('ROLLBACK');
        await run('SELECT note FROM a1');
      }
    });

    test('is refused what would move a session that holds what stays behind', async () => {
      await using client = await connected();
      expect(await value(client, 'SELECT note FROM b1')).toBe('source');
      await client.query('BEGIN');
      await client.query('DECLARE held CURSOR WITH HOLD FOR SELECT note FROM b1');
      await client.query('COMMIT');
      await client.query('BEGIN');
      await client.query("SET LOCAL app.tenant = 'kept'");
      await expect(client.query('SELECT note FROM a1')).rejects.toMatchObject({
        ...refused,
        message: expect.stringMatching(/can't go to the destination.*cursor-with-hold held/) as string,
      });
      await client.query('ROLLBACK');
      expect(await value(client, 'FETCH held')).toBe('source');
      await client.query('CLOSE held');
      expect(await value(client, 'SELECT note FROM a1')).toBe('destination');
    });
  });

  describe('a pipeline', () => {
    test('is one up to its Sync, and its parts may be flushed one by one', async () => {
      await using client = await raw();
      const run = (sql: string): Buffer[] => [send.parse(sql), send.bind(), send.execute()];
      // Two tables of one side, then of the other, then of both.
      client.write(...run('SELECT note FROM b1'), ...run('SELECT note FROM r1'), send.sync());
      client.write(...run('SELECT note FROM a1'), ...run('SELECT note FROM a2'), send.sync());
      client.write(...run('DELETE FROM r1'), ...run('DELETE FROM a1'), send.sync());
      client.write(...run('SELECT note FROM a1'), send.sync());
      await client.readies(4);
      expect(client.types).toMatch(/^12DC12DCZS*12DC12DCZEZ12DCZ$/);
      expect(sqlStates(client.messages)).toEqual(['0A000']);
      client.messages.length = 0;
      // What is described first is run where it belongs; what follows in the same pipeline is bound by it.
      client.write(send.parse('SELECT note FROM b1'), send.describe('S'), send.flush());
      await until(() => client.types.endsWith('T'));
      client.write(send.bind(), send.execute(), send.flush());
      await until(() => client.types.endsWith('C'));
      client.write(...run('DELETE FROM a1'), send.flush());
      await until(() => client.types.endsWith('E'));
      client.write(send.sync(), send.query('SELECT note FROM b1'));
      await client.readies(2);
      expect(sqlStates(client.messages)).toEqual(['0A000']);
      expect(statuses(client.messages)).toBe('II');
    });

    test('copies in and out on the side of the table', async () => {
      await using client = await raw();
      await client.run([send.query('SELECT note FROM b1')]);
      client.write(send.query('COPY a1 FROM STDIN'), send.copyData('70\tcopied\n'), send.copyDone());
      await client.readies(1);
      client.write(send.query('COPY b1 TO STDOUT'), send.query('BEGIN'), send.query('COPY a1 FROM STDIN'));
      await until(() => client.types.endsWith('G'));
      client.write(send.copyData('71\tcopied\n'), send.copyDone(), send.query('COMMIT'));
      await client.readies(5);
      expect(sqlStates(client.messages)).toEqual([]);
      const { rows } = await pair.onDestination.query(
        "SELECT id FROM public.a1 WHERE note = 'copied' ORDER BY 1",
      );
      expect(rows).toEqual([{ id: '70' }, { id: '71' }]);
      await pair.onDestination.query("DELETE FROM public.a1 WHERE note = 'copied'");
    });
  });
});
