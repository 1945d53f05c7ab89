import { expect, test } from 'vitest';
import { VerifySide } from '../../../src/shadow/postgres/verify-side.js';
import { databasePair } from '../../support/servers.js';

test('a comparison whose connection is ended by the server may be tried again', async () => {
  await using pair = await databasePair();
  const side = new VerifySide(pair.onSource, 'source');
  const query = (text: string): Promise<unknown> => side.query({ text, values: [] });
  await expect(query('SELECT 1 FROM nowhere')).rejects.toMatchObject({ retryable: false });
  await expect(query('SELECT pg_terminate_backend(pg_backend_pid())')).rejects.toMatchObject({
    retryable: true,
  });
});
