/** How a session begins, and how it is refused. */
import { query } from './frames.js';
import { ready, type Conversation } from './conversation.js';

const shows = (name: string, parameters: Record<string, string>, setting: string): Conversation => ({
  name,
  login: { parameters },
  steps: [query(`SHOW ${setting}`), ready],
});

const refused = (name: string, login: Conversation['login'] & object, expect: string): Conversation => ({
  name,
  login,
  steps: [],
  ends: 'closed',
  refused: true,
  expect,
});

export const STARTUP: readonly Conversation[] = [
  shows('options: -c', { options: '-c work_mem=7MB -c search_path=scratch' }, 'work_mem'),
  shows('options: --', { options: '--statement-timeout=12345' }, 'statement_timeout'),
  shows('options with escaped blanks', { options: '-c application_name=a\\ b' }, 'application_name'),
  shows('a setting by name', { work_mem: '9MB', TimeZone: 'Asia/Tokyo', datestyle: 'German' }, 'TimeZone'),
  shows('a setting of one’s own', { 'app.tenant': '7' }, 'app.tenant'),
  shows('the client’s encoding', { client_encoding: 'LATIN1' }, 'client_encoding'),
  shows('the client’s encoding by an alias', { client_encoding: "'utf-8'" }, 'client_encoding'),
  shows('an application_name that is not ASCII', { application_name: 'żółw' }, 'application_name'),
  shows('replication=database', { replication: 'database' }, 'wal_level'),
  refused('a setting that does not exist', { parameters: { nonsense: '1' } }, '42704'),
  refused('a setting with a bad value', { parameters: { work_mem: 'much' } }, '22023'),
  refused('a setting that cannot be set', { parameters: { port: '1' } }, '55P02'),
  refused('options that are malformed', { parameters: { options: '-Z' } }, '42601'),
  refused('an encoding that does not exist', { parameters: { client_encoding: 'nonsense' } }, '22023'),
  refused('an unknown database', { database: 'no_such_database' }, '3D000'),
  refused('a wrong password', { password: 'wrong' }, '28P01'),
  refused('a role that does not exist', { user: 'no_such_role' }, '28P01'),
  refused('a role that may not log in', { user: 'nologin_role' }, '28000'),
  refused('a role with no connections left', { user: 'crowded_role' }, '53300'),
];
