/** What a session keeps: SQL's PREPARE, settings, notices, notifications. */
import { ask, bind, closeStatement, describeStatement, execute, parse, query, run, sync } from './frames.js';
import { frame } from '../proxy-support.js';
import { readies, ready, waitFor, type Conversation } from './conversation.js';

const one = (
  name: string,
  statements: readonly string[],
  more: Partial<Conversation> = {},
): Conversation => ({
  name,
  steps: statements.flatMap((sql) => [query(sql), ready]),
  ...more,
});

const raise = (level: string): string => `DO $$ BEGIN RAISE ${level} 'at ${level}' USING HINT = 'h'; END $$`;
const LEVELS = ['DEBUG', 'LOG', 'INFO', 'NOTICE', 'WARNING'].map(raise);

export const STATE: readonly Conversation[] = [
  one('PREPARE, EXECUTE, DEALLOCATE', [
    'PREPARE p (int) AS SELECT $1 + 1', 'EXECUTE p (41)', "EXECUTE p ('x')", 'PREPARE p AS SELECT 1', 'DEALLOCATE p',
    'EXECUTE p (1)', 'DEALLOCATE p',
  ]), // prettier-ignore
  {
    name: 'a statement prepared in SQL, used by messages',
    steps: [
      query('PREPARE p (int) AS SELECT $1 + 1'), describeStatement('p'), bind({ statement: 'p', values: ['41'] }),
      execute(), sync, closeStatement('p'), sync, query('EXECUTE p (1)'), readies(4),
    ], // prettier-ignore
  },
  {
    name: 'a statement prepared by messages, used in SQL',
    steps: [
      parse('SELECT $1::int', 'p'),
      sync,
      query('EXECUTE p (7)'),
      query('DEALLOCATE p'),
      bind({ statement: 'p' }),
      sync,
      readies(4),
    ],
  },
  {
    name: 'DEALLOCATE ALL',
    steps: [
      parse('SELECT 1', 'a'), sync, query('PREPARE b AS SELECT 2'), query('DEALLOCATE ALL'), bind({ statement: 'a' }), sync,
      query('EXECUTE b'), readies(5),
    ], // prettier-ignore
  },
  {
    name: 'DISCARD ALL',
    steps: [
      parse('SELECT 1', 'a'), sync, query("SET application_name = 'x'; CREATE TEMP TABLE t (a int); LISTEN n"),
      query('DISCARD ALL'), query('SHOW application_name'), query('SELECT * FROM t'), bind({ statement: 'a' }), sync,
      query('BEGIN'), query('DISCARD ALL'), query('ROLLBACK'), readies(9),
    ], // prettier-ignore
  },
  {
    name: 'EXPLAIN EXECUTE by messages',
    steps: [query('PREPARE p AS SELECT 1'), ask('EXPLAIN (COSTS OFF) EXECUTE p'), readies(2)],
  },
  one('settings that clients are told of', [
    "SET application_name = 'changed'", "SET TimeZone = 'Asia/Tokyo'", 'SET DateStyle = German', "SET IntervalStyle = 'iso_8601'",
    'SELECT now() > now(), interval \'1 day 2 h\'', 'RESET ALL', 'SHOW TimeZone',
  ]), // prettier-ignore
  one('several settings in one query', [
    "SET application_name = 'a'; SET application_name = 'b'; SET TimeZone = 'UTC'; SELECT 1",
  ]),
  one('a setting that the rollback takes back', [
    'BEGIN',
    "SET application_name = 'gone'",
    'ROLLBACK',
    'SHOW application_name',
  ]),
  one('a setting for the transaction', [
    'BEGIN',
    "SET LOCAL application_name = 'here'",
    'COMMIT',
    'SHOW application_name',
  ]),
  one('settings of one’s own', [
    "SET app.tenant = '7'", 'SHOW app.tenant', "SELECT set_config('app.tenant', '8', true)", 'SHOW app.tenant', 'SHOW app.other',
  ]), // prettier-ignore
  one('settings that are refused', [
    "SET work_mem = 'much'",
    'SET nonsense = 1',
    'SET port = 1',
    'SHOW nonsense',
  ]),
  one('standard_conforming_strings and its warning', [
    'SET standard_conforming_strings = off', "SELECT 'a\\nb'", 'SET escape_string_warning = off', "SELECT 'a\\nb'",
  ]), // prettier-ignore
  one('roles', [
    'SET ROLE pg_monitor',
    'SELECT current_user',
    'SET ROLE no_such_role',
    'RESET ROLE',
    'SET SESSION AUTHORIZATION DEFAULT',
  ]),
  {
    name: 'settings within a pipeline',
    steps: [
      run("SET application_name = 'p'"),
      run('SELECT 1'),
      run("SET TimeZone = 'UTC'"),
      sync,
      run("SET application_name = 'q'"),
      run('SELECT 1/0'),
      sync,
      readies(2),
    ],
  },
  one('notices at each level', LEVELS),
  one('notices down to DEBUG1', ['SET client_min_messages = debug1', ...LEVELS]),
  one('notices from WARNING on', ['SET client_min_messages = warning', ...LEVELS]),
  one('no notices', ['SET client_min_messages = error', ...LEVELS]),
  one('notices between the rows', ['SELECT shout(i) FROM generate_series(1, 3) i']),
  one('notices of commands', [
    'DROP TABLE IF EXISTS scratch.nothing', 'CREATE TABLE scratch.t (id serial PRIMARY KEY); TRUNCATE scratch.t CASCADE; DROP TABLE scratch.t',
    'CREATE SCHEMA IF NOT EXISTS scratch',
  ]), // prettier-ignore
  {
    name: 'two hundred notices in front of one row',
    steps: [
      query("DO $$ BEGIN FOR i IN 1..200 LOOP RAISE NOTICE 'n %', i; END LOOP; END $$; SELECT 1"),
      ready,
    ],
  },
  one('LISTEN and NOTIFY of one’s own', [
    'LISTEN news', "NOTIFY news, 'one'", "SELECT pg_notify('news', 'two'), pg_notify('news', 'two')", 'UNLISTEN news', 'NOTIFY news',
  ]), // prettier-ignore
  one('NOTIFY within a transaction', [
    'LISTEN news',
    'BEGIN',
    "NOTIFY news, 'late'",
    'SELECT 1',
    'COMMIT',
    'UNLISTEN *',
  ]),
  {
    name: 'a notification while idle',
    steps: [
      query('LISTEN "odd name"'), ready, { act: ({ control }) => control.query('NOTIFY "odd name", \'hello\'') }, waitFor('A'),
      { act: ({ control }) => control.query('NOTIFY "odd name"') }, waitFor('A'), query('SELECT 1'), ready,
    ], // prettier-ignore
  },
  {
    name: 'a notification that waits for the end of the transaction',
    steps: [
      query('LISTEN news'), ready, query('BEGIN'), ready, { act: ({ control }) => control.query("NOTIFY news, 'x'") },
      query('SELECT 1'), ready, query('COMMIT'), ready, waitFor('A'), query('SELECT 2'), ready,
    ], // prettier-ignore
  },
  {
    name: 'a hundred notifications while idle',
    steps: [
      query('LISTEN news'), ready,
      { act: ({ control }) => control.query("SELECT pg_notify('news', i || repeat('x', 500)) FROM generate_series(1, 100) i") },
      waitFor('A', 100),
    ], // prettier-ignore
  },
  {
    name: 'a payload that is too long',
    steps: [query(`NOTIFY news, '${'x'.repeat(8000)}'`), ready],
  },
  one('sequences and lastval', [
    'SELECT lastval()',
    'CREATE TEMP SEQUENCE s',
    "SELECT nextval('s'), currval('s'), lastval()",
  ]),
  one(
    'temporary tables',
    [
      'CREATE TEMP TABLE t (a int, b text)',
      "INSERT INTO t VALUES (1, 'x')",
      'SELECT * FROM t',
      'DROP TABLE t',
    ],
    { makes: true },
  ),
  one('advisory locks', [
    'SELECT pg_advisory_lock(7)',
    'SELECT pg_advisory_unlock(7), pg_advisory_unlock(7)',
  ]),
  one('the client’s encoding: LATIN1', [
    'SET client_encoding = LATIN1', "SELECT U&'caf\\00e9'", "SELECT U&'\\6771\\4eac'", 'SHOW client_encoding', 'RESET client_encoding', "SELECT U&'\\6771'",
  ]), // prettier-ignore
  {
    name: 'the client’s encoding: LATIN1, its own bytes in texts, names and values',
    steps: [
      query('SET client_encoding = LATIN1'), ready, latin1('Q', "SELECT 'caf\xe9', length('caf\xe9')\0"), ready,
      latin1('P', "caf\xe9\0SELECT $1::text || '\xe9'\0\0\0"), latin1('B', '\0caf\xe9\0\0\0\0\x01\0\0\0\x02\xe9\xe8\0\0'), execute(), sync,
      latin1('C', 'Scaf\xe9\0'), sync, readies(2),
    ], // prettier-ignore
  },
  one('the client’s encoding: SQL_ASCII', [
    'SET client_encoding = SQL_ASCII',
    "SELECT 'żółć'",
    "SELECT U&'\\017c'",
  ]),
  one('the client’s encoding: EUC_JP, and one that is none', [
    'SET client_encoding = EUC_JP', "SELECT U&'\\6771\\4eac'", 'SET client_encoding = nonsense', "SET NAMES 'UTF8'", "SELECT U&'\\6771\\4eac'",
  ]), // prettier-ignore
];

/** A Query or Parse in LATIN1. */
function latin1(type: string, text: string): Buffer {
  return frame(type, Buffer.from(text, 'latin1'));
}
