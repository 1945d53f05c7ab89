/** PostgreSQL's own parser: what it tells of statements, and what becomes of texts that it can't take. */
import { createRequire } from 'node:module';
import fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import { numberBlind } from '../../src/capture/number-blind.js';
import { PostgresParser } from '../../src/capture/parser.js';
import { StatementCache } from '../../src/capture/statements.js';
import { until } from '../support/servers.js';

let parser: PostgresParser;
beforeAll(async () => {
  parser = new PostgresParser();
  await parser.load();
});

/** `kind`, then `<` tables read, `>` tables written (with what, where it isn't the kind), `!` locked, `f()` called. */
function told(sql: string): string {
  const statement = new StatementCache(parser).statement(sql);
  const words: string[] = [statement.kind];
  for (const { table, kind, writes, locks } of statement.accesses) {
    const name = table.schema === null ? table.name : `${table.schema}.${table.name}`;
    const how = kind === statement.kind || !writes ? '' : `=${kind}`;
    words.push(`${locks ? '!' : ''}${writes ? '>' : '<'}${name}${how}`);
  }
  for (const { schema, name } of statement.functions)
    words.push(`${schema === null ? '' : `${schema}.`}${name}()`);
  if (!statement.parsed) words.push('?');
  return words.join(' ');
}

describe('kind, tables read and written, locks and functions', () => {
  test.each([
    // Queries.
    ['SELECT 1', 'select'],
    ['TABLE a', 'select <a'],
    ['SELECT * FROM ONLY s."A b" x', 'select <s.A b'],
    ['VALUES (1), ((SELECT x FROM a))', 'select <a'],
    [
      'SELECT * FROM a, b JOIN c USING (id) LEFT JOIN LATERAL (SELECT * FROM d) e ON true',
      'select <a <b <c <d',
    ],
    ['SELECT (SELECT x FROM a), EXISTS (SELECT 1 FROM b), ARRAY(SELECT y FROM c)', 'select <a <b <c'],
    [
      'SELECT * FROM a WHERE x IN (SELECT y FROM b) ORDER BY (SELECT 1 FROM c) LIMIT (SELECT 1 FROM d)',
      'select <a <b <c <d',
    ],
    ['SELECT count(*) FROM a GROUP BY x HAVING max(y) > (SELECT z FROM b)', 'select <a <b count() max()'],
    ['(SELECT * FROM a) UNION ALL (SELECT * FROM b EXCEPT SELECT * FROM c)', 'select <a <b <c'],
    ['SELECT * FROM a x, a y', 'select <a'],
    ['SELECT CASE WHEN EXISTS (SELECT 1 FROM a) THEN (SELECT 1 FROM b) END', 'select <a <b'],
    ['SELECT sum(x) OVER (PARTITION BY (SELECT y FROM b)) FROM a', 'select <b <a sum()'],
    [
      'SELECT extract(epoch FROM x), substring(y FROM 1 FOR 2) FROM t',
      'select <t pg_catalog.extract() pg_catalog.substring()',
    ],
    ['SELECT x IS DISTINCT FROM y FROM t', 'select <t'],
    ['SELECT * FROM a TABLESAMPLE bernoulli (10), generate_series(1, 2) g', 'select <a generate_series()'],
    ['SELECT * FROM ROWS FROM (f(1), s.g(2)) r', 'select f() s.g()'],
    ['SELECT nextval($$seq$$), s.f((SELECT 1 FROM a))', 'select <a nextval() s.f()'],
    ['SELECT * FROM XMLTABLE($$/r$$ PASSING (SELECT d FROM a) COLUMNS x int) t', 'select <a'],
    ['SELECT * FROM JSON_TABLE((SELECT d FROM a), $$$.x$$ COLUMNS (y int PATH $$$.y$$)) t', 'select <a'],
    ['SELECT 1; SELECT * FROM a; DELETE FROM b', 'select <a >b=delete'],
    // CTEs.
    ['WITH x AS (SELECT * FROM a) SELECT * FROM x', 'select <a'],
    ['WITH a AS (SELECT * FROM a) SELECT * FROM a', 'select <a'],
    ['WITH a AS (SELECT 1) SELECT * FROM s.a', 'select <s.a'],
    ['WITH RECURSIVE t AS (SELECT 1 UNION ALL SELECT * FROM t JOIN a ON true) SELECT * FROM t', 'select <a'],
    ['WITH RECURSIVE x AS (SELECT * FROM y), y AS (SELECT * FROM a) SELECT * FROM x', 'select <a'],
    ['WITH x AS (SELECT * FROM y), y AS (SELECT * FROM a) SELECT * FROM x', 'select <y <a'],
    ['SELECT (WITH x AS (SELECT * FROM a) SELECT 1 FROM x), (SELECT 1 FROM x)', 'select <a <x'],
    ['WITH gone AS (DELETE FROM a RETURNING *) INSERT INTO b SELECT * FROM gone', 'insert >a=delete >b'],
    ['WITH w AS (UPDATE a SET x = 1 RETURNING *) SELECT * FROM w JOIN c ON true', 'select >a=update <c'],
    [
      'WITH w AS (INSERT INTO a SELECT * FROM b RETURNING *) UPDATE c SET x = w.x FROM w',
      'update >a=insert <b >c',
    ],
    [
      'WITH m AS (MERGE INTO a USING b ON true WHEN MATCHED THEN DELETE RETURNING *) SELECT * FROM m',
      'select >a=merge <b',
    ],
    // Writes.
    ['INSERT INTO a VALUES (1, 2)', 'insert >a'],
    [
      'INSERT INTO s.a (x) VALUES ((SELECT max(y) FROM b)) ON CONFLICT (x) DO UPDATE SET y = (SELECT z FROM c) RETURNING (SELECT 1 FROM d)',
      'insert >s.a <b <c <d max()',
    ],
    ['INSERT INTO a SELECT * FROM a JOIN b ON true', 'insert >a <a <b'],
    ['INSERT INTO a DEFAULT VALUES', 'insert >a'],
    ['UPDATE ONLY a SET x = b.x FROM b, c WHERE a.id = b.id RETURNING *', 'update >a <b <c'],
    ['UPDATE a SET (x, y) = (SELECT 1, 2 FROM b)', 'update >a <b'],
    ['UPDATE a SET x = 1 WHERE CURRENT OF c', 'update >a'],
    ['DELETE FROM a USING b JOIN c USING (id) WHERE a.id = b.id', 'delete >a <b <c'],
    ['DELETE FROM a WHERE id IN (SELECT id FROM b FOR UPDATE SKIP LOCKED LIMIT 5)', 'delete >a !<b'],
    [
      'MERGE INTO a t USING (SELECT * FROM b) s ON t.id = s.id WHEN MATCHED THEN UPDATE SET x = (SELECT 1 FROM c) WHEN NOT MATCHED THEN INSERT VALUES (s.id)',
      'merge >a <b <c',
    ],
    ['TRUNCATE a, ONLY s.b RESTART IDENTITY CASCADE', 'truncate >a >s.b'],
    ['COPY s.a (x, y) FROM STDIN WITH (FORMAT csv)', 'copy >s.a'],
    ['COPY a TO STDOUT', 'copy <a'],
    ['COPY (SELECT * FROM a JOIN b ON true) TO STDOUT', 'copy <a <b'],
    ['COPY (DELETE FROM a RETURNING *) TO STDOUT', 'copy >a=delete'],
    ['COPY a FROM STDIN WHERE x > 1', 'copy >a'],
    // Locks.
    ['SELECT * FROM a FOR UPDATE', 'select !<a'],
    ['SELECT * FROM a x JOIN b ON true FOR SHARE OF x', 'select !<a <b'],
    ['SELECT * FROM a FOR KEY SHARE OF a FOR UPDATE NOWAIT', 'select !<a'],
    ['SELECT * FROM (SELECT * FROM a FOR NO KEY UPDATE) t', 'select !<a'],
    ['LOCK TABLE a, s.b IN EXCLUSIVE MODE', 'utility !<a !<s.b'],
    // What makes tables of queries, and other definitions.
    ['SELECT * INTO TEMP x FROM a', 'select >x=ddl <a'],
    ['CREATE TABLE x AS SELECT * FROM a', 'ddl <a >x'],
    ['CREATE MATERIALIZED VIEW m AS SELECT * FROM a', 'ddl <a >m'],
    ['REFRESH MATERIALIZED VIEW CONCURRENTLY s.m', 'ddl >s.m'],
    ['CREATE TABLE s.a (id int REFERENCES b)', 'ddl >s.a'],
    ['CREATE VIEW v AS SELECT * FROM a', 'ddl >v'],
    ['CREATE INDEX CONCURRENTLY ON a (x)', 'ddl >a'],
    ['ALTER TABLE a ADD COLUMN x int', 'ddl >a'],
    ['ALTER TABLE a RENAME TO b', 'ddl >a'],
    ['DROP TABLE IF EXISTS a, s.b', 'ddl >a >s.b'],
    ['DROP FUNCTION f(int)', 'ddl'],
    ['CREATE TRIGGER t BEFORE INSERT ON a EXECUTE FUNCTION f()', 'ddl >a'],
    ['CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT x FROM a; END', 'ddl'],
    ['GRANT SELECT ON a TO b', 'ddl'],
    ['COMMENT ON TABLE a IS $$x$$', 'ddl'],
    // Statements that run others.
    ['EXPLAIN SELECT * FROM a', 'utility'],
    ['EXPLAIN ANALYZE DELETE FROM a', 'utility >a=delete'],
    ['EXPLAIN (ANALYZE, BUFFERS) SELECT * FROM a', 'utility <a'],
    ['EXPLAIN (ANALYZE off) SELECT * FROM a', 'utility'],
    ['EXPLAIN (ANALYZE true) SELECT * FROM a', 'utility <a'],
    ['DECLARE c CURSOR WITH HOLD FOR SELECT * FROM a', 'select <a'],
    ['FETCH 10 FROM c', 'utility'],
    ['PREPARE p AS SELECT * FROM a WHERE x = $1', 'session'],
    ['EXECUTE p (1)', 'utility'],
    ['DEALLOCATE p', 'session'],
    ['CALL s.f(1, (SELECT 1 FROM a))', 'utility <a s.f() ?'],
    [`DO 'BEGIN DELETE FROM a; END'`, 'utility ?'],
    // Transactions, sessions, the rest.
    ['BEGIN ISOLATION LEVEL SERIALIZABLE', 'transaction'],
    ['BEGIN; UPDATE a SET x = 1; COMMIT', 'update >a'],
    ['SAVEPOINT s', 'transaction'],
    ['SET search_path = a, b', 'session'],
    ['SHOW ALL', 'session'],
    ['LISTEN a', 'session'],
    ['VACUUM ANALYZE a', 'utility'],
    ['CHECKPOINT', 'utility'],
    ['', 'unknown ?'],
    [' -- nothing but a comment', 'utility'],
    [';;', 'utility'],
    ['SELECT "größe"."ключ" FROM "größe" -- ✓', 'select <größe'],
    // What PostgreSQL refuses is read by its tokens, and not trusted.
    ['SELECT * FROM a WHERE', 'select <a ?'],
    ['SELEKT * FROM a', 'unknown ?'],
    ['UPDATE a SET x = ', 'update >a ?'],
  ])('%s', (sql, expected) => {
    expect(told(sql)).toBe(expected);
  });

  test('transactions begin, end and chain', () => {
    const read = (sql: string) => {
      const { begins, ends, chains } = new StatementCache(parser).statement(sql);
      return [begins, ends, chains];
    };
    expect(read('START TRANSACTION')).toEqual([true, null, false]);
    expect(read('END')).toEqual([false, 'commit', false]);
    expect(read('ROLLBACK AND CHAIN')).toEqual([false, 'rollback', true]);
    expect(read('ABORT')).toEqual([false, 'rollback', false]);
    expect(read('ROLLBACK TO SAVEPOINT s')).toEqual([false, null, false]);
    expect(read(`PREPARE TRANSACTION 'x'`)).toEqual([false, 'prepare', false]);
    expect(read(`COMMIT PREPARED 'x'`)).toEqual([false, null, false]);
    expect(read('BEGIN; SELECT 1; COMMIT')).toEqual([true, 'commit', false]);
  });

  test('what a session changes for its later statements', () => {
    const cache = new StatementCache(parser);
    expect(cache.statement(`SET search_path TO a, "B", 'c d'`).searchPath).toEqual(['a', 'B', 'c d']);
    expect(cache.statement('RESET search_path').searchPath).toBe('default');
    expect(cache.statement('DISCARD ALL').searchPath).toBe('default');
    expect(cache.statement('SET LOCAL search_path = a').searchPath).toBeNull();
    expect(cache.statement('SET role = a').searchPath).toBeNull();
    const { prepares } = cache.statement('PREPARE p (int) AS UPDATE a SET x = $1');
    expect(prepares).toMatchObject({
      name: 'p',
      body: { kind: 'update', accesses: [{ table: { name: 'a' } }] },
    });
    expect(cache.statement('EXECUTE p (1)').executes).toBe('p');
    expect(cache.statement('CREATE TABLE x AS EXECUTE p').executes).toBe('p');
    expect(cache.statement('ALTER TABLE a ADD b int').changesCatalog).toBe(true);
    expect(cache.statement('SELECT 1 INTO x').changesCatalog).toBe(true);
    expect(cache.statement('GRANT SELECT ON a TO b').changesCatalog).toBe(false);
  });
});

describe('fingerprints', () => {
  test('texts that differ in values, spacing, case or the length of a list have one', () => {
    const fingerprint = (sql: string): string => new StatementCache(parser).statement(sql).fingerprint;
    const first = fingerprint('SELECT a.id FROM item a WHERE a.id = 1 AND x IN (1, 2)');
    expect(first).toMatch(/^[0-9a-f]{16}$/);
    expect(fingerprint(`select a.id\n from ITEM as a where a.id='x' /* c */ and x in ($1)`)).toBe(first);
    expect(fingerprint('SELECT a.id FROM item a WHERE a.id = 1')).not.toBe(first);
    // Refused texts have one too.
    expect(fingerprint('SELECT FROM WHERE 1')).toBe(fingerprint('select from where 2'));
  });
});

type Factory = NonNullable<ConstructorParameters<typeof PostgresParser>[0]>;
const moduleFactory = createRequire(import.meta.url)('libpg-query/wasm/libpg-query.js') as Factory;

describe('texts that are one but for numbers', () => {
  test.each([
    ['SELECT a FROM t WHERE id = 1', 'SELECT a FROM t WHERE id = 222222222', true],
    ['SELECT a FROM t WHERE x > 1.5 LIMIT 10', 'SELECT a FROM t WHERE x > 20.25 LIMIT 99', true],
    ['INSERT INTO t VALUES (-1, (2))', 'INSERT INTO t VALUES (-77, (0))', true],
    [`SELECT nextval('s1')`, `SELECT nextval('s2')`, false],
    [`SELECT nextval(E'\\'s 1')`, `SELECT nextval(E'\\'s 2')`, false],
    ['SELECT nextval($a$s 1$a$)', 'SELECT nextval($a$s 2$a$)', false],
    ['SELECT * FROM t1', 'SELECT * FROM t2', false],
    ['SELECT * FROM "t 1"', 'SELECT * FROM "t 2"', false],
    ['SELECT * FROM U&"t\\0031"', 'SELECT * FROM U&"t\\0032"', false],
    ['SELECT * FROM t WHERE id = $1 OR x = $2', 'SELECT * FROM t WHERE id = $2 OR x = $1', false],
    // Of other types: another function may be called.
    ['SELECT f(1)', 'SELECT f(1.0)', false],
    ['SELECT f(1)', 'SELECT f(9999999999)', false],
    ['SELECT a::float(1)', 'SELECT a::float(53)', false],
    ['SELECT 1a', 'SELECT 2a', false],
    [`SELECT 'never ended 1`, `SELECT 'never ended 2`, false],
  ])('%s, %s: %s', (one, other, same) => {
    expect(numberBlind(one) === numberBlind(other)).toBe(same);
  });

  /** The tree but for the values of numbers, and where things stand. */
  const withoutNumbers = (text: string): string =>
    JSON.stringify(parser.parse(text)?.statements ?? null, (key, value: unknown) => {
      if (key === 'ival' || key === 'fval') return key;
      return /^(?:howMany|typmod)$|(?:location|_len|_start|_end)$/.test(key) ? undefined : value;
    });

  test('PostgreSQL reads them as one, whatever stands around the numbers', () => {
    const small = fc.nat(999).map(String);
    const written = fc.constantFrom(
      '1.5',
      '20.75',
      '.5',
      '5.',
      '1e5',
      '0x1F',
      '0b1',
      '1_000',
      '9999999999',
      '007',
    );
    const number = fc.oneof(small, written);
    // What stands in one place of either text.
    const pair = fc.oneof(
      { weight: 5, arbitrary: number.map((same) => [same, same] as const) },
      { weight: 4, arbitrary: fc.tuple(small, small) },
      { weight: 1, arbitrary: fc.tuple(number, number) },
    );
    // A # is one of them, or what looks like one.
    const pieces = [
      ['#', '-#', '(#)', 'f(#)', 'x#', 'x.y#', '#x', '$#', '#.#', '#..#', '#$#', 'é#', '#é', 'a[#]', '?#'],
      [`'#'`, `'it''s #'`, `'\\'#'`, `E'\\'#'`, `E'\\\\'`, `x'#'`, `u&'\\00#'`, `U&"a#"`, '"#"', '"a""#"'],
      ['$$#$$', '$q$ # $$ $q$', '/* # /* # */ */', '--# \n', `'a'\n'#'`, '*/', '/*', `'`, '"', '$$', '\\'],
      ['x::float(#)', 'x::float ( # )', 'x::"float"(#)', 'x::varchar(#)', `interval '#' second(#)`, '#/*#*/'],
      [`nextval('s#')`, '#--\n', 'current_timestamp(#)', '#::regclass', `'#'::regclass`, `n'#'`, `b'#'`],
    ].flat();
    const piece = fc.constantFrom(...pieces);
    const text = fc
      .tuple(fc.array(piece, { minLength: 1, maxLength: 4 }), fc.constantFrom(', ', ' ', ' = ', '+', ''))
      .map(([pieces, gap]) => `SELECT ${pieces.join(gap)} FROM t# WHERE id = # LIMIT #`);
    let alike = 0;
    fc.assert(
      fc.property(text, fc.array(pair, { minLength: 12, maxLength: 12 }), (holes, pairs) => {
        const filled = (which: 0 | 1): string => {
          let next = 0;
          return holes.replaceAll('#', () => pairs[next++ % pairs.length]?.[which] ?? '');
        };
        const [one, other] = [filled(0), filled(1)];
        if (one === other || numberBlind(one) !== numberBlind(other)) return;
        alike++;
        expect(withoutNumbers(one)).toBe(withoutNumbers(other));
      }),
      { numRuns: 1_000 },
    );
    expect(alike).toBeGreaterThan(20);
  });
});

describe('what the parser can’t take', () => {
  test('a text that breaks it costs the module, not the capture', async () => {
    // How deep is too deep depends on the thread and on how far its code was optimised: so it is told when to trap.
    let modules = 0;
    const own = new PostgresParser(async () => {
      const module = await moduleFactory();
      modules += 1;
      return {
        ...module,
        _wasm_parse_query_raw: (text: number) => {
          if (module.UTF8ToString(text).includes('deep'))
            throw new RangeError('Maximum call stack size exceeded');
          return module._wasm_parse_query_raw(text);
        },
      };
    });
    await own.load();
    const cache = new StatementCache(own);
    const deep = 'SELECT deep FROM a';
    const expected = { kind: 'select', parsed: false, accesses: [{ table: { name: 'a' } }] };
    expect(cache.statement(deep)).toMatchObject(expected);
    expect(own.traps).toBe(1);
    // Until it is back, tokens have to do, and are not kept.
    expect(cache.statement('SELECT f() FROM b')).toMatchObject({
      functions: [],
      accesses: [{ table: { name: 'b' } }],
    });
    await until(() => own.ready, { what: 'the parser to be back' });
    expect(modules).toBe(2);
    expect(cache.statement('SELECT f() FROM b')).toMatchObject({ functions: [{ name: 'f' }], parsed: true });
    // What broke it is not tried again.
    expect(cache.statement(deep)).toMatchObject(expected);
    expect(own.traps).toBe(1);
  });

  test('nesting beyond its own stack is refused', () => {
    for (const depth of [1_000, 30_000])
      expect(() => told(`SELECT ${'('.repeat(depth)}1${')'.repeat(depth)} FROM a`)).not.toThrow();
    expect(told('SELECT * FROM a')).toBe('select <a');
  });

  test('a module that can’t be loaded leaves the tokens', async () => {
    const none = new PostgresParser(() => Promise.reject(new Error('no module')));
    await none.load();
    expect(none.problem?.message).toContain('no module');
    const cache = new StatementCache(none);
    expect(cache.statement('DELETE FROM a WHERE x = 1')).toMatchObject({ kind: 'delete', parsed: false });
    expect(cache.statement('DELETE FROM a WHERE x = 2')).toBe(cache.statement('DELETE FROM a WHERE x = 3'));
    expect(cache.refused).toBe(1);
  });

  test('its memory stays what it was, for texts that it takes and for those it refuses', async () => {
    let bytes = (): number => 0;
    const own = new PostgresParser(async () => {
      const module = await moduleFactory();
      bytes = () => module._malloc(16);
      return module;
    });
    await own.load();
    const round = (): void => {
      for (let n = 0; n < 300; n += 1) {
        own.parse(`SELECT * FROM item_${n} WHERE id = ${n}`);
        own.parse(`SELECT FROM WHERE ${n}`);
      }
    };
    round();
    const before = bytes();
    round();
    round();
    // Where the allocator hands out its next block tells how much is held.
    expect(bytes() - before).toBeLessThan(4_096);
  });
});
