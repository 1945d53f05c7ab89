/** Simple queries. */
import { query } from './frames.js';
import { frame } from '../proxy-support.js';
import { readies, ready, type Conversation } from './conversation.js';

const simple = (name: string, sql: string, more: Partial<Conversation> = {}): Conversation => ({
  name,
  steps: [query(sql), ready],
  ...more,
});

const columns = (count: number): string =>
  Array.from({ length: count }, (_, index) => `${index} AS c${index}`).join(', ');

export const SIMPLE: readonly Conversation[] = [
  simple('an empty query', ''),
  simple('only blanks, comments and semicolons', '  ;; -- nothing\n /* at all */ ;'),
  simple('one row', "SELECT 1 AS one, 'two' AS two, NULL AS nothing"),
  simple('several statements', "SELECT 1; SELECT 2, 3; SELECT repeat('x', 300)"),
  simple('empty statements between others', 'SELECT 1;; ;SELECT 2;'),
  simple('no rows', 'SELECT * FROM item WHERE false'),
  simple('no columns', 'SELECT'),
  simple('rows without columns', 'SELECT FROM generate_series(1, 3)'),
  simple('a null, an empty string and blanks', "SELECT NULL::text, '', ' ', NULL::int[]"),
  simple('1,600 columns', `SELECT ${columns(1600)}`),
  simple('1,665 columns, one too many', `SELECT ${columns(1665)}`),
  simple('letters of many scripts', 'SELECT \'żółć 東京 🎭\' AS "naïve ’column’"'),
  simple('500 rows of a table', 'SELECT * FROM item ORDER BY id'),
  simple('2 MB of rows', "SELECT i, repeat('y', 1000) FROM generate_series(1, 2000) i", { whole: true }),
  simple('a very long text', `SELECT length('${'z'.repeat(300_000)}')`),
  simple(
    'a text far longer than what is looked through, failing at its end',
    `SELECT '${'z'.repeat(200_000)}' FROM`,
  ),
  simple('an error alone', 'SELECT nonsense FROM item'),
  simple('a syntax error with its position', 'SELECT 1;\nSELECT FROM FROM'),
  simple('an error in the middle of several statements', 'SELECT 1; SELECT 1/0; SELECT 3'),
  simple('a row before the error', 'SELECT 10 / (3 - i) FROM generate_series(1, 5) i'),
  simple('what an error undoes of several statements', "INSERT INTO item VALUES (900, 'x'); SELECT 1/0"),
  simple('a commit in the middle, then an error', 'BEGIN; SELECT 1; COMMIT; SELECT 2; SELECT 1/0; SELECT 3'),
  simple('a transaction left open by several statements', 'SELECT 1; BEGIN; SELECT 2'),
  simple(
    'an error with every field',
    "DO $$ BEGIN RAISE EXCEPTION USING MESSAGE = 'm', DETAIL = 'd', HINT = 'h', ERRCODE = 'U0001', COLUMN = 'c', CONSTRAINT = 'k', DATATYPE = 't', TABLE = 'r', SCHEMA = 's'; END $$",
  ),
  simple('a constraint that is violated', "INSERT INTO item VALUES (1, 'again')"),
  simple('a domain that is violated', 'SELECT (-1)::positive'),
  simple(
    'tags of writes',
    "INSERT INTO item VALUES (901, 'a'), (902, 'b'); UPDATE item SET name = 'c' WHERE id > 900; DELETE FROM item WHERE id > 900",
  ),
  simple(
    'data-modifying WITH',
    'WITH gone AS (DELETE FROM item WHERE id < 4 RETURNING *) SELECT count(*), max(name) FROM gone',
    { dirty: true },
  ),
  simple(
    'tables made from queries',
    'CREATE TABLE scratch.a AS SELECT 1 AS x; SELECT * INTO scratch.b FROM scratch.a; SELECT * FROM scratch.b; DROP TABLE scratch.a, scratch.b',
    {
      makes: true,
    },
  ),
  simple('a procedure with results', "CALL twice(21, 'x')"),
  simple('EXPLAIN', 'EXPLAIN (COSTS OFF) SELECT * FROM item WHERE id = 7'),
  simple('SHOW, VALUES, TABLE', "SHOW server_encoding; VALUES (1, 'a'), (2, 'b'); TABLE feeling"),
  simple('an identifier cut with a notice', `SELECT 1 AS ${'n'.repeat(70)}`),
  simple('text that is not in the client’s encoding', '', {
    steps: [
      frame('Q', Buffer.from([0x53, 0x45, 0x4c, 0x45, 0x43, 0x54, 0x20, 0x27, 0xff, 0xfe, 0x27, 0])),
      ready,
    ],
  }),
  {
    name: 'several queries in flight, some failing',
    steps: [
      query('SELECT 1'), query('SELECT 1/0'), query(''), query('SELECT nonsense'), query('SELECT 5'),
      readies(5),
    ], // prettier-ignore
  },
  {
    name: 'two hundred queries in flight',
    steps: [...Array.from({ length: 200 }, (_, index) => query(`SELECT ${index}`)), readies(200)],
  },
];
