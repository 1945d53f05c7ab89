import { expect, test } from 'vitest';
import { connectControl } from '../../src/core/postgres.js';
import { databasePair } from '../support/servers.js';

test('own connections are ended by no timeout that the database or the role has', async () => {
  await using pair = await databasePair();
  for (const side of ['source', 'destination'] as const) {
    const setter = side === 'source' ? pair.onSource : pair.onDestination;
    const names = [
      'statement_timeout',
      'lock_timeout',
      'idle_in_transaction_session_timeout',
      'idle_session_timeout',
      ...(side === 'source' ? [] : ['transaction_timeout']),
    ];
    const { rows } = await setter.query<{ name: string }>(`SELECT pg_catalog.current_database() AS name`);
    for (const name of names) await setter.query(`ALTER DATABASE "${rows[0]?.name}" SET ${name} = '77s'`);
    const own = await connectControl(side, pair[side], { purpose: 'test' });
    try {
      for (const name of names) expect((await own.query(`SHOW ${name}`)).rows).toEqual([{ [name]: '0' }]);
    } finally {
      await own.end();
    }
  }
});
