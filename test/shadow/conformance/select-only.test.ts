/** A source that gives nothing but SELECT: what `auto` makes of it, and what it can't be asked for. */
import { expect, test } from 'vitest';
import type { OperationReport, VerifyReport } from '../../../src/core/ports.js';
import { databasePair, until } from '../../support/servers.js';
import { Stack } from '../../support/stack.js';
import { contents, sql } from '../engine-harness.js';

test('with SELECT alone the shadow follows by poll, says why, and a cutover is refused', async () => {
  await using pair = await databasePair();
  const reader = `reader_${pair.source.database}`;
  await sql(
    pair.onSource,
    `CREATE TABLE item (id bigint PRIMARY KEY, name text UNIQUE);
     CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY);
     CREATE TABLE keyless (note text);
     INSERT INTO item SELECT n, 'item ' || n FROM generate_series(1, 1000) n;
     INSERT INTO keyless VALUES ('a'), ('a');
     INSERT INTO scratch VALUES (1);
     CREATE ROLE ${reader} LOGIN PASSWORD 'secret';
     GRANT USAGE ON SCHEMA public TO ${reader};
     GRANT SELECT ON ALL TABLES IN SCHEMA public TO ${reader}`,
  );
  try {
    await using stack = await Stack.start({
      source: { ...pair.source, user: reader, password: 'secret' },
      destination: pair.destination,
      yaml: `migration: { id: ${pair.source.database} }
shadow: { pollIntervalMs: 20, copyRoles: false }`,
    });
    await stack.following();
    const { shadow } = await stack.status();
    expect(shadow.method).toMatchObject({
      method: 'poll',
      reason: expect.stringContaining('REPLICATION') as string,
    });
    expect(shadow.warnings?.map(({ code }) => code)).toContain('source-unfenced');

    await sql(
      pair.onSource,
      `UPDATE item SET name = 'new' WHERE id = 7; INSERT INTO item VALUES (2000, 'late'); DELETE FROM item WHERE id = 8;
       INSERT INTO keyless VALUES ('b')`,
    );
    await until(
      async () =>
        JSON.stringify(await contents(pair.onSource)) === JSON.stringify(await contents(pair.onDestination)),
      { what: 'both sides to be the same' },
    );
    const report = await stack.operate<VerifyReport>('verify');
    expect(report.mismatches).toBe(0);

    const refused = await stack.operate<OperationReport>('cutover');
    expect(refused.outcome).toBe('aborted');
    expect(refused.reason?.code).toBe('preflight-blocked');
    // Nothing of Understudy's is left on a source that only gave SELECT.
    const { rows } = await pair.onSource.query(`SELECT FROM pg_namespace WHERE nspname = 'understudy'`);
    expect(rows).toHaveLength(0);
  } finally {
    await pair.onSource.query(`DROP OWNED BY ${reader}; DROP ROLE ${reader}`);
  }
});
