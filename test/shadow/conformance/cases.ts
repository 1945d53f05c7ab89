/**
 * What every way of following must bring over, whatever it learns of changes by: the same cases for all. Each writes
 * through the proxy, as an application does, and is over once its clients are.
 */
import type pg from 'pg';
import { until } from '../../support/servers.js';
import { sql } from '../engine-harness.js';

export interface Conditions {
  /** Through the proxy. Ended with the suite. */
  readonly client: () => Promise<pg.Client>;
  /** Past the proxy, to look. */
  readonly source: () => pg.Client;
  /** Ends the shadow's connections to both servers, as a failing network would. */
  readonly cutConnections: () => Promise<void>;
  /** Kills the process and starts it again. Clients are lost with it. */
  readonly restart: () => Promise<void>;
}

export interface Case {
  readonly name: string;
  readonly run: (conditions: Conditions) => Promise<void>;
}

export const SCHEMA = `
  CREATE TABLE account (id bigint PRIMARY KEY, owner text NOT NULL, balance numeric NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now());
  CREATE TABLE pair (a integer, b text, note text, PRIMARY KEY (a, b));
  CREATE TABLE child (id bigint PRIMARY KEY, account bigint NOT NULL REFERENCES account ON DELETE CASCADE, note text);
  CREATE TABLE named (id integer PRIMARY KEY, name text NOT NULL UNIQUE);
  CREATE TABLE wide (id integer PRIMARY KEY, body text, tag text);
  CREATE UNLOGGED TABLE cache (id bigint PRIMARY KEY, before bigint REFERENCES cache);
  CREATE TABLE journal (at timestamptz DEFAULT now(), line text);
  CREATE TABLE part (id integer, region text, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
  CREATE TABLE part_eu PARTITION OF part FOR VALUES IN ('eu');
  CREATE TABLE part_us PARTITION OF part FOR VALUES IN ('us');
  CREATE TABLE "Odd ""name" ("the key" uuid PRIMARY KEY DEFAULT gen_random_uuid(), "a b" text,
    twice integer GENERATED ALWAYS AS (length("a b") * 2) STORED);
  CREATE TABLE audit (id bigserial PRIMARY KEY, account bigint, at timestamptz DEFAULT now());
  CREATE FUNCTION note_account() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO public.audit (account) VALUES (NEW.id); RETURN NEW; END $$;
  CREATE TRIGGER note AFTER UPDATE OF owner ON account FOR EACH ROW EXECUTE FUNCTION note_account();
  CREATE FUNCTION deposit(which bigint, amount numeric) RETURNS void LANGUAGE sql AS
    $$ UPDATE public.account SET balance = balance + amount, updated_at = now() WHERE id = which $$;
  INSERT INTO account (id, owner) SELECT n, 'owner ' || n FROM generate_series(1, 400) n;
  INSERT INTO child SELECT n, 1 + n % 400, 'child' FROM generate_series(1, 400) n;
  INSERT INTO named SELECT n, 'name ' || n FROM generate_series(1, 50) n;
  INSERT INTO wide SELECT n, repeat(md5(n::text), 400), 'tag' FROM generate_series(1, 20) n;
  INSERT INTO journal (line) SELECT 'line ' || n % 5 FROM generate_series(1, 30) n;
  INSERT INTO part SELECT n, CASE n % 2 WHEN 0 THEN 'eu' ELSE 'us' END, 'v' FROM generate_series(1, 40) n;
  INSERT INTO pair SELECT n, 'k' || n, 'note' FROM generate_series(1, 40) n;
  INSERT INTO "Odd ""name" ("a b") SELECT 'row ' || n FROM generate_series(1, 10) n;`;

const statements =
  (text: string) =>
  async ({ client }: Conditions): Promise<void> =>
    await sql(await client(), text);

export const CASES: readonly Case[] = [
  {
    name: 'inserts, of one row and of many',
    run: statements(
      `INSERT INTO account (id, owner) VALUES (1001, 'new');
       INSERT INTO account (id, owner) SELECT n, 'many' FROM generate_series(2001, 2300) n;
       INSERT INTO journal (line) VALUES ('same'), ('same')`,
    ),
  },
  {
    name: 'updates, by key and by range',
    run: statements(
      `UPDATE account SET balance = 7, updated_at = now() WHERE id = 1001;
       UPDATE account SET balance = balance + 1, updated_at = now() WHERE id BETWEEN 2001 AND 2100`,
    ),
  },
  {
    name: 'prepared statements with parameters',
    run: async ({ client }) => {
      const connection = await client();
      for (let id = 3001; id <= 3010; id += 1) {
        await connection.query('INSERT INTO public.account (id, owner) VALUES ($1, $2)', [id, `p ${id}`]);
        await connection.query({
          name: 'set_balance',
          text: 'UPDATE public.account SET balance = $1, updated_at = now() WHERE id = $2',
          values: [id, id],
        });
      }
      await connection.query('DELETE FROM public.account WHERE id = $1', [3010]);
    },
  },
  {
    name: 'deletes, and what they cascade to',
    run: statements('DELETE FROM account WHERE id IN (5, 6, 7); DELETE FROM pair WHERE a > 35'),
  },
  {
    name: 'changed keys',
    run: statements(
      `UPDATE pair SET a = a + 1000 WHERE a <= 5; UPDATE pair SET b = 'moved' WHERE a = 10;
       UPDATE account SET id = 9001 WHERE id = 3009`,
    ),
  },
  {
    name: 'a unique value that goes round',
    run: statements(
      `BEGIN; UPDATE named SET name = 'x' WHERE id = 1; UPDATE named SET name = 'name 1' WHERE id = 2;
       UPDATE named SET name = 'name 2' WHERE id = 1; COMMIT`,
    ),
  },
  {
    name: 'a column out of line that an update leaves alone',
    run: statements(
      `UPDATE wide SET tag = 'other' WHERE id <= 10; UPDATE wide SET body = 'short' WHERE id = 20`,
    ),
  },
  {
    name: 'rows that move between partitions',
    run: statements(`UPDATE part SET region = 'eu' WHERE id IN (1, 3, 5); DELETE FROM part WHERE id = 2`),
  },
  {
    name: 'names that must be quoted, generated columns',
    run: statements(
      `UPDATE "Odd ""name" SET "a b" = "a b" || '!'; INSERT INTO "Odd ""name" ("a b") VALUES ('z')`,
    ),
  },
  {
    name: 'what triggers and functions write',
    run: statements(`UPDATE account SET owner = 'noted' WHERE id = 11; SELECT deposit(12, 5)`),
  },
  {
    name: 'a table without a key',
    run: statements(
      `DELETE FROM journal WHERE line = 'line 1'; UPDATE journal SET line = 'changed' WHERE line = 'line 2'`,
    ),
  },
  {
    name: 'TRUNCATE, and rows after it',
    run: statements(`TRUNCATE named; INSERT INTO named VALUES (1, 'name 2'), (7, 'seven')`),
  },
  {
    name: 'what is rolled back',
    run: statements(
      `BEGIN; INSERT INTO account (id, owner) VALUES (7777, 'never'); DELETE FROM account WHERE id = 20; ROLLBACK`,
    ),
  },
  {
    name: 'savepoints, kept and rolled back',
    run: statements(
      `BEGIN; INSERT INTO account (id, owner) VALUES (8001, 'kept');
       SAVEPOINT a; INSERT INTO account (id, owner) VALUES (8002, 'lost'); ROLLBACK TO a;
       SAVEPOINT b; INSERT INTO account (id, owner) VALUES (8003, 'kept'); RELEASE b; COMMIT`,
    ),
  },
  {
    name: 'COPY',
    run: statements(
      `INSERT INTO account (id, owner) SELECT id + 20000, owner FROM account WHERE id BETWEEN 100 AND 150`,
    ),
  },
  {
    name: 'a transaction that is open while others commit',
    run: async ({ client }) => {
      const long = await client();
      const others = await client();
      await long.query('BEGIN');
      await long.query('UPDATE public.account SET balance = 41 WHERE id = 30');
      await long.query('SAVEPOINT inner_one');
      await long.query(`INSERT INTO public.account (id, owner) VALUES (40001, 'late')`);
      for (let turn = 0; turn < 20; turn += 1) {
        await others.query('UPDATE public.account SET balance = $1 WHERE id = 31', [turn]);
      }
      await long.query('UPDATE public.account SET balance = 42 WHERE id = 30');
      await long.query('COMMIT');
    },
  },
  {
    name: 'writers of the same keys at the same time',
    run: async ({ client }) => {
      const writers = await Promise.all([client(), client(), client()]);
      await Promise.all(
        writers.map(async (writer, number) => {
          for (let turn = 0; turn < 40; turn += 1) {
            const id = 50_000 + (turn % 5);
            if (turn % 7 === number) await writer.query('DELETE FROM public.account WHERE id = $1', [id]);
            await writer.query(
              `INSERT INTO public.account (id, owner) VALUES ($1, 'w')
               ON CONFLICT (id) DO UPDATE SET balance = account.balance + $2, updated_at = now()`,
              [id, number],
            );
          }
        }),
      );
    },
  },
  {
    name: 'a statement whose client is gone before its answer',
    run: async ({ client, source }) => {
      const gone = await client();
      await source().query('SELECT pg_advisory_lock(9)');
      const sent = gone.query(
        `UPDATE public.account SET balance = 99 WHERE id = 33 AND pg_advisory_xact_lock(9) IS NOT NULL`,
      );
      sent.catch(() => undefined);
      await until(async () => {
        const running = await source().query(
          `SELECT FROM pg_stat_activity WHERE query LIKE '%balance = 99%' AND pid <> pg_backend_pid() AND state = 'active'
             AND datname = current_database()`,
        );
        return running.rows.length > 0;
      });
      (gone as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy();
      await source().query('SELECT pg_advisory_unlock(9)');
      await until(async () => {
        const { rows } = await source().query<{ balance: string }>(
          'SELECT balance FROM public.account WHERE id = 33',
        );
        return rows[0]?.balance === '99';
      });
    },
  },
  {
    name: 'connections of the shadow that are cut',
    run: async ({ client, cutConnections }) => {
      const writer = await client();
      await writer.query('UPDATE public.account SET balance = 1 WHERE id BETWEEN 200 AND 220');
      await cutConnections();
      await writer.query('UPDATE public.account SET balance = 2 WHERE id BETWEEN 210 AND 230');
      await writer.query('DELETE FROM public.account WHERE id BETWEEN 231 AND 233');
    },
  },
  {
    name: 'a restart of the sidecar',
    run: async ({ client, restart }) => {
      const before = await client();
      await before.query('UPDATE public.account SET balance = 3 WHERE id BETWEEN 300 AND 310');
      await before.query('DELETE FROM public.account WHERE id BETWEEN 311 AND 312');
      await restart();
      const after = await client();
      await after.query('UPDATE public.account SET balance = 4 WHERE id BETWEEN 305 AND 315');
    },
  },
];
