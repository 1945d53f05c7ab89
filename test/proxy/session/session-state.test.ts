import { expect, test } from 'vitest';
import { readState } from '../../../src/proxy/session/session-state.js';

test('a timeout for transactions is held by the session, what belongs to the transaction is not', () => {
  const rows = ['timeout', 'isolation', 'read_only', 'deferrable'].map((name) => [
    'setting',
    `transaction_${name}`,
    'x',
    null,
  ]);
  const { settings } = readState([['role', 'none', 'u', '0'], ...rows]);
  expect([...settings.keys()]).toEqual(['transaction_timeout']);
});
