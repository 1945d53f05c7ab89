import { readFile } from 'node:fs/promises';
import { describe, expect, test } from 'vitest';
import {
  ERROR_CODES,
  UnderstudyError,
  asUnderstudyError,
  invariant,
  unreachable,
  type SerializedError,
} from '../../src/core/errors.js';

describe('docs/errors.md', () => {
  test('lists exactly the codes there are, with their meaning, whether to retry, and what to do', async () => {
    const page = await readFile(new URL('../../docs/errors.md', import.meta.url), 'utf8');
    const listed = page
      .split('\n')
      .filter((line) => /^\| `[a-z-]+` /.test(line))
      .map((line) => line.split('|').map((cell) => cell.trim()))
      .map(([, code, retryable, meaning, advice]) => ({ code, retryable, meaning, advice }));
    expect(listed.map(({ code, retryable, meaning }) => ({ code, retryable, meaning }))).toEqual(
      Object.entries(ERROR_CODES).map(([code, [retryable, meaning]]) => ({
        code: `\`${code}\``,
        retryable: retryable ? 'yes' : 'no',
        meaning,
      })),
    );
    for (const { code, advice } of listed) expect(advice, code).toMatch(/\w.{10,}\.$/);
  });
});

describe('understudy errors', () => {
  test('retryable is the code’s, unless the cause knows better', () => {
    expect(new UnderstudyError('busy', 'later').retryable).toBe(true);
    expect(new UnderstudyError('apply-failed', 'no').retryable).toBe(false);
    expect(new UnderstudyError('apply-failed', 'again', { retryable: true }).retryable).toBe(true);
  });

  test('one survives being sent over a port or as JSON', () => {
    const error = new UnderstudyError('fence-timeout', 'locks', {
      advice: 'Try later.',
      details: { table: 'public.a' },
      cause: new Error('not sent'),
    });
    const back = UnderstudyError.fromJSON(JSON.parse(JSON.stringify(error)) as SerializedError);
    expect(back).toMatchObject({
      code: 'fence-timeout',
      message: 'locks',
      retryable: true,
      advice: 'Try later.',
      details: { table: 'public.a' },
    });
    expect(back.toJSON()).toEqual(error.toJSON());
    expect(back.cause).toBeUndefined();
  });

  test('what is one already is not wrapped again; anything else is, with its cause', () => {
    const own = new UnderstudyError('busy', 'later');
    expect(asUnderstudyError(own, 'internal', 'x')).toBe(own);
    const cause = new RangeError('deep');
    const wrapped = asUnderstudyError(cause, 'copy-failed', 'copying public.a');
    expect(wrapped).toMatchObject({ code: 'copy-failed', message: 'copying public.a: deep', cause });
    expect(asUnderstudyError('text', 'internal', 'x').message).toBe('x: text');
  });

  test('a broken invariant and an impossible value are internal', () => {
    expect(() => invariant(false, 'two writers')).toThrow(
      expect.objectContaining({ code: 'internal', message: 'invariant violated: two writers' }),
    );
    expect(() => invariant(1, 'fine')).not.toThrow();
    expect(() => unreachable('surprise' as never)).toThrow(expect.objectContaining({ code: 'internal' }));
  });
});
