import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { tokenize } from '../../src/capture/sql-tokens.js';

/** Tokens written so that a test can read them: words plain, names in «», literals ?, parameters $. */
function written(sql: string): string {
  const { tokens, cut } = tokenize(sql);
  const texts = tokens.map(({ kind, text }) =>
    kind === 'name' ? `«${text}»` : kind === 'literal' ? '?' : kind === 'parameter' ? '$' : text,
  );
  return texts.join(' ') + (cut ? ' …' : '');
}

describe('tokens', () => {
  test.each([
    [`SELECT "A""b".c`, 'select «A"b» . c'],
    [
      `select 'it''s', e'\\'x', E'a\\\\', b'01', X'ff', N'n', U&'\\0041', u&"d\\0061t"`,
      'select ? , ? , ? , ? , ? , ? , ? , «d\\0061t»',
    ],
    [`'no \\' escape`, '? escape'],
    ['$1 + $23', '$ + $'],
    [`$$ ' " -- $x$ $$ a $tag$ $$ $tag$ b`, '? a ? b'],
    ['a$b', 'a$b'],
    ['1 1.5 .5 1e10 1.5E-3 0x1F 1_000 1.', '? ? ? ? ? ? ? ?'],
    ['a1 _x Größe', 'a1 _x größe'],
    ['a -- to the end ; "x\nb', 'a b'],
    ['a /* one /* two */ still */ b', 'a b'],
    ['x::int[1:2]', 'x : : int [ ? : ? ]'],
    ['', ''],
    ['$', '$'],
  ])('%s', (sql, tokens) => {
    expect(written(sql)).toBe(tokens);
  });

  test.each(["select 'open", 'select "open', 'select /* open', 'select $$ open', "select E'open\\'"])(
    '%s is marked as cut',
    (sql) => {
      expect(tokenize(sql).cut).toBe(true);
    },
  );

  test('any text is read to its end, without throwing', () => {
    const piece = fc.oneof(
      fc.string(),
      fc.constantFrom(
        "'",
        '"',
        '$',
        '$$',
        '--',
        '/*',
        '*/',
        '\n',
        "E'",
        '\\',
        '(',
        ')',
        'U&"',
        '\u{1F600}',
        '\0',
      ),
    );
    fc.assert(
      fc.property(fc.array(piece), (pieces) => {
        tokenize(pieces.join(''));
      }),
    );
  });
});
