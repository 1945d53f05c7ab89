/** Values in text and binary, function calls, wide and large rows. */
import {
  ask,
  bind,
  describeStatement,
  execute,
  functionCall,
  int32,
  int64,
  parse,
  query,
  run,
  sync,
} from './frames.js';
import { readies, ready, type Conversation } from './conversation.js';

const VALUES: Record<string, string> = {
  bool: 'true, false, NULL::bool',
  integers: '1::int2, 2::int4, 3::int8, 4::oid, 5::xid, \'x\'::"char", 6::money',
  floats: "1.5::float4, 'NaN'::float8, '-Infinity'::float8, 1e300::float8",
  numeric: "0::numeric, 'NaN'::numeric, -12345678901234567890.000000123::numeric(40,9), 1e-10::numeric",
  text: "'a'::text, 'b'::varchar(5), 'c'::char(5), 'd'::name, ''::text",
  bytea: "'\\x00ff'::bytea, ''::bytea",
  times:
    "'2026-01-02'::date, '03:04:05.678'::time, '03:04:05+02'::timetz, '2026-01-02 03:04:05'::timestamp, 'infinity'::timestamptz, '1 mon 2 days 3 h'::interval",
  net: "'10.0.0.1/8'::inet, 'fe80::1'::inet, '10.0.0.0/8'::cidr, '08:00:2b:01:02:03'::macaddr",
  json: "'{\"a\": [1, null]}'::json, '{\"b\": 1e2}'::jsonb, 'null'::jsonb, '$.a'::jsonpath",
  uuid: "'11111111-2222-3333-4444-555555555555'::uuid, B'10101'::bit(5), B'1'::varbit",
  geometry:
    "point(1, 2), '((0,0),(1,1))'::box, '[(0,0),(1,1)]'::lseg, '<(0,0),2>'::circle, '((0,0),(1,1),(2,0))'::polygon",
  arrays: "'{1,NULL,3}'::int[], '{}'::text[], '{{1,2},{3,4}}'::int[][], '[0:1]={5,6}'::int[], ARRAY[true]",
  ranges:
    "'[1,5)'::int4range, 'empty'::numrange, '(,2026-01-01]'::daterange, '{[1,2),[5,6)}'::int4multirange",
  search: "'a fat cat'::tsvector, 'fat & cat'::tsquery, '0/16B3748'::pg_lsn, '1:5:2,3'::pg_snapshot",
  records: "ROW(1, 'x', NULL), (1, 'a')::pair, '{\"(1,b)\"}'::pair[]",
  own: "'happy'::mood, '{sad,ok}'::mood[], 7::positive",
  reg: "'item'::regclass::text, 'int4'::regtype, 'abs(int4)'::regprocedure, 'pg_catalog'::regnamespace",
};

const results = (name: string, list: string): Conversation[] => [
  { name: `${name} as text`, steps: [ask(`SELECT ${list}`), query(`SELECT ${list}`), readies(2)] },
  { name: `${name} as binary`, steps: [ask(`SELECT ${list}`, { results: [1] }), ready] },
];

export const FORMATS: readonly Conversation[] = [
  ...Object.entries(VALUES).flatMap(([name, list]) => results(name, list)),
  {
    name: 'binary parameters',
    steps: [
      ask('SELECT $1::int4, $2::int8, $3::bool, $4::bytea, $5::text', {
        values: [int32(-5), int64(2n ** 62n), Buffer.from([1]), Buffer.from([0, 255, 0]), 'text'],
        formats: [1],
        results: [1, 0, 1, 0, 1],
      }),
      ready,
    ],
  },
  {
    name: 'binary parameters that are not well formed',
    steps: [
      parse('SELECT $1::int4', 's'), sync, bind({ statement: 's', values: [Buffer.from([1])], formats: [1] }), sync,
      bind({ statement: 's', values: [Buffer.alloc(8)], formats: [1] }), sync, run('SELECT $1::text', { values: [Buffer.from([0xff])], formats: [1] }), sync,
      readies(4),
    ], // prettier-ignore
  },
  {
    name: 'parameters of types of one’s own',
    steps: [
      parse('SELECT $1::mood, $2::mood[], $3::pair, $4::positive', 's'), describeStatement('s'),
      bind({ statement: 's', values: ['ok', '{sad,happy}', '(1,x)', '5'], results: [1] }), execute(), sync,
      bind({ statement: 's', values: ['bad', null, null, null] }), execute(), sync, readies(2),
    ], // prettier-ignore
  },
  { name: 'a composite row', steps: [ask('SELECT f, f.pair FROM feeling f', { results: [1] }), ready] },
  {
    name: 'function calls',
    steps: [functionCall(1397, ['-5']), functionCall(1397, [int32(-5)], [1], 1), readies(2)],
  },
  { name: 'a function call with a null', steps: [functionCall(1397, [null]), ready] },
  { name: 'a function call of an unknown function', steps: [functionCall(999_999, []), ready] },
  { name: 'a function call with too many arguments', steps: [functionCall(1397, ['1', '2']), ready] },
  {
    name: 'a function call that fails within a transaction',
    steps: [
      query('BEGIN'),
      functionCall(154, ['1', '0']),
      functionCall(1397, ['1']),
      query('ROLLBACK'),
      readies(4),
    ],
  },
  {
    name: 'function calls between queries in flight',
    steps: [
      query('SELECT 1'),
      functionCall(1397, ['-5']),
      run('SELECT 2'),
      sync,
      functionCall(1397, ['-6']),
      readies(4),
    ],
  },
  { name: 'a row of 4 MB', steps: [query("SELECT repeat('L', 4000000)"), ready], whole: true },
  {
    name: 'a value of 4 MB sent',
    steps: [ask('SELECT md5($1)', { values: ['w'.repeat(4_000_000)] }), ready],
    whole: true,
  },
  {
    name: '20,000 short rows',
    steps: [ask('SELECT i FROM generate_series(1, 20000) i', { results: [1] }), ready],
    whole: true,
  },
  {
    name: 'large objects',
    steps: [query("BEGIN; SELECT lo_from_bytea(4711, '\\x0102'); SELECT lo_get(4711); ROLLBACK"), ready],
  },
];
