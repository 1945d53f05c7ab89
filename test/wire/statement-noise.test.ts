/** A statement that changes the session is seen wherever it stands, whatever else its text holds. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  CHANGES_STATE,
  NAMES_SETTINGS,
  StatementText,
  UNKNOWN_SETTING,
} from '../../src/wire/postgres/statement-text.js';

/** What could hide something: ends, quotes, comments, and words that begin statements. */
const pieces = fc.constantFrom(
  ';', '--', '/*', '*/', "'", '"', '\\', '$', '$$', '$1', '\n', '\r', ' ', '(', ')', '.', ',', '1', 'a', 'é', 'U&', 'E',
  'select', 'set', 'local', 'commit', 'do', 'true',
); // prettier-ignore
const inside = fc.array(pieces, { maxLength: 6 }).map((all) => all.join(''));
const blockComment = inside.map((text) => `/*${text.replaceAll(/\/\*|\*\/|\/$|^\*|\*$|^\//g, ' ')} */`);
const comment = fc.oneof(
  inside.map((text) => `--${text.replaceAll(/[\n\r]/g, ' ')}\n`),
  blockComment,
  fc.tuple(blockComment, blockComment).map(([outer, inner]) => `/* ${inner}${outer.slice(2)}`),
);
const space = fc.oneof(
  { weight: 3, arbitrary: fc.constantFrom(' ', '\n', '\t', '\r\n') },
  { weight: 1, arbitrary: comment },
);
const literal = fc.oneof(
  inside.map((text) => `'${text.replaceAll("'", "''").replaceAll('\\', '')}'`),
  inside.map((text) => `E'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`),
  inside.map((text) => `$q$${text.replaceAll('$', '')}$q$`),
  inside.map((text) => `$$${text.replaceAll('$', '')}$$`),
  inside.map((text) => `"c${text.replaceAll('"', '""')}"`),
  inside.map((text) => `U&'${text.replaceAll("'", "''").replaceAll('\\', '')}'`),
  fc.constantFrom('1', '1.5', '$1', 'a', 'é', 'x$y'),
);
const noise = fc
  .tuple(
    fc.constantFrom('SELECT', 'VALUES', 'select', 'UPDATE t SET a ='),
    fc.array(fc.tuple(space, literal), { minLength: 1, maxLength: 4 }),
  )
  .map(([verb, rest]) => verb + rest.map(([between, value]) => between + value).join(' ,'));

/** By its words; between them may stand what is blank to the server. */
const stateful = fc.constantFrom(
  { words: ['SET', 'ROLE', 'admin'], custom: false },
  { words: ['SET', 'work_mem', '=', "'7MB'"], custom: false },
  { words: ['RESET', 'ALL'], custom: false },
  { words: ['LISTEN', 'news'], custom: false },
  { words: ['DISCARD', 'ALL'], custom: false },
  { words: ['EXECUTE', 'p'], custom: false },
  { words: ['CREATE', 'TEMP', 'TABLE', 't', '(a int)'], custom: false },
  { words: ['SELECT', '1', 'INTO', 'TEMPORARY', 't'], custom: false },
  { words: ['SELECT', 'pg_advisory_lock', '(1)'], custom: false },
  { words: ['SELECT', 'app', '.', '"enter_tenant"', '(1)'], custom: false },
  { words: ['SET', 'app', '.', 'tenant', '=', "'7'"], custom: true },
  { words: ['SET', 'SESSION', '"app"', '.', 'tenant', 'TO', "'7'"], custom: true },
  { words: ['SELECT', 'set_config', '(', "'app.tenant'", ',', "'7'", ',', 'false', ')'], custom: true },
  { words: ['SELECT', 'pg_catalog', '.', 'set_config', '(', "'app.tenant'", ',', "E'\\', true) --'", ',', 'false', ')'], custom: true },
); // prettier-ignore
const hidden = stateful.chain(({ words, custom }) =>
  fc
    .array(space, { minLength: words.length, maxLength: words.length })
    .map((spaces) => ({ sql: words.map((word, at) => word + (spaces[at] ?? ' ')).join(''), custom })),
);
/** Joined by `;` and what may stand behind it. */
const texts = fc
  .tuple(
    fc.array(fc.tuple(noise, space), { maxLength: 3 }),
    space,
    hidden,
    fc.array(fc.tuple(space, noise), { maxLength: 2 }),
  )
  .map(([before, first, { sql, custom }, behind]) => ({
    sql: `${first}${before.map(([text, between]) => `${text};${between}`).join('')}${sql}${behind.map(([between, text]) => `;${between}${text}`).join('')}`,
    custom,
  }));

const text = new StatementText();
text.setStatefulNames(['enter_tenant']);

test('a statement that changes the session is seen behind any noise, and what it sets is named or unknown', () => {
  fc.assert(
    fc.property(texts, ({ sql, custom }) => {
      const bytes = Buffer.from(sql);
      const flags = text.classify(bytes, 0, bytes.length, false);
      expect(flags & CHANGES_STATE).toBe(CHANGES_STATE);
      if (!custom || (flags & UNKNOWN_SETTING) !== 0) return;
      expect(flags & NAMES_SETTINGS).toBe(NAMES_SETTINGS);
      expect(text.settingNames).toContain('app.tenant');
    }),
    { numRuns: 500 },
  );
});
