/** A flush whose COMMIT outlives the process that sent it is not applied a second time by the next one. */
import { expect, test } from 'vitest';
import { databasePair, until } from '../support/servers.js';
import { Stack } from '../support/stack.js';

test('killed while the COMMIT of a flush is under way: a row of a table without a key arrives once', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(`CREATE TABLE public.k (v text); INSERT INTO public.k VALUES ('a')`);
  await using stack = await Stack.start(pair);
  await stack.following();
  // A COMMIT that lasts until the test lets it end: its deferred trigger waits for a lock that the test holds.
  await pair.onDestination.query(`
    CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON public.k DEFERRABLE INITIALLY DEFERRED
      FOR EACH ROW EXECUTE FUNCTION public.wait();
    ALTER TABLE public.k ENABLE ALWAYS TRIGGER wait`);
  await pair.onDestination.query('SELECT pg_advisory_lock(4711)');
  await pair.onSource.query(`INSERT INTO public.k VALUES ('once')`);
  const waiting = (what: string) => async () =>
    (
      await pair.onDestination.query(
        `SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE $1 AND wait_event = 'advisory'`,
        [what],
      )
    ).rows.length > 0;
  await until(waiting('%COMMIT'), { what: 'the COMMIT to be under way' });
  await stack.kill();
  await stack.run();
  // The next process waits for its predecessor's connection instead of reading progress that is about to change.
  await until(waiting('%pg_advisory_lock(%'), { what: 'the next process to wait' });
  await pair.onDestination.query('SELECT pg_advisory_unlock(4711)');
  await pair.onSource.query(`INSERT INTO public.k VALUES ('later')`);
  const rows = async () =>
    (await pair.onDestination.query<{ v: string }>('SELECT v FROM public.k ORDER BY v')).rows.map(
      (row) => row.v,
    );
  await until(async () => (await rows()).includes('later'), { what: 'the later row' });
  expect(await rows()).toEqual(['a', 'later', 'once']);
});
