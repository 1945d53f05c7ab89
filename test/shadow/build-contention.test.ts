import { expect, test } from 'vitest';
import { connectControl } from '../../src/core/postgres.js';
import { buildSchema } from '../../src/shadow/postgres/schema/build.js';
import { databasePair, until } from '../support/servers.js';

test('a foreign key that deadlocks with the apply yields to it and is tried again', async () => {
  await using pair = await databasePair();
  const { onDestination: apply } = pair;
  await apply.query('CREATE TABLE public.parent (id int PRIMARY KEY)');
  await apply.query('CREATE TABLE public.child (id int PRIMARY KEY, parent int)');
  const builder = await connectControl('destination', pair.destination, { purpose: 'build' });
  try {
    await apply.query('BEGIN');
    await apply.query('INSERT INTO public.parent VALUES (1)');
    const built = buildSchema(
      builder,
      [
        {
          kind: 'foreign-key',
          object: 'child_parent',
          sql: 'ALTER TABLE public.child ADD CONSTRAINT child_parent FOREIGN KEY (parent) REFERENCES public.parent NOT VALID',
        },
      ],
      { phase: 'after-copy', signal: new AbortController().signal },
    );
    // It holds `child` and waits for `parent`, which the apply holds; now the apply asks for `child`.
    await until(async () => {
      const { rows } =
        await apply.query(`SELECT FROM pg_locks WHERE NOT granted AND relation = 'public.parent'::regclass AND database =
          (SELECT oid FROM pg_database WHERE datname = current_database())`);
      return rows.length > 0;
    });
    await apply.query('INSERT INTO public.child VALUES (1, 1)');
    await apply.query('COMMIT');
    expect(await built).toMatchObject({ ran: 1, findings: [] });
    const { rows } = await apply.query('SELECT count(*) FROM pg_constraint WHERE conname = $1', [
      'child_parent',
    ]);
    expect(rows).toEqual([{ count: '1' }]);
  } finally {
    await builder.end();
  }
});
