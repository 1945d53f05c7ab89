/** What names mean on a connection, as its server tells. */
import type { NameScope } from '../../core/subset-ports.js';
import type { Reply } from '../backend/reply-reader.js';

/** Null where the server would not say. */
export async function askScope(ask: (sql: string) => Promise<Reply>): Promise<NameScope | null> {
  const { rows, sqlState } = await ask('SHOW search_path; SHOW role; SHOW session_authorization');
  const [path, role, user] = rows.map((row) => Buffer.from(row[0] ?? '', 'latin1').toString('utf8'));
  if (sqlState !== null || path === undefined || role === undefined || user === undefined) return null;
  return { searchPath: path, user: role === 'none' ? user : role };
}

export function sameScope(one: NameScope, other: NameScope): boolean {
  return one.searchPath === other.searchPath && one.user === other.user;
}
