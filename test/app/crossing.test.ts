/** How many captured transactions touch two subsets. */
import { expect, test } from 'vitest';
import { crossingsOf } from '../../src/app/crossing.js';

test('pairs of tables in different subsets are counted by subsets, the most frequent first', () => {
  const table = (name: string): { schema: string; name: string } => ({ schema: 'public', name });
  const findings = crossingsOf(
    [
      { a: 'public.a1', b: 'public.a2', transactions: 900 },
      { a: 'public.a1', b: 'public.b1', transactions: 10 },
      { a: 'public.a2', b: 'public.b1', transactions: 7 },
      { a: 'public.b1', b: 'public.r1', transactions: 40 },
      { a: 'public.b1', b: 'public.gone', transactions: 99 },
    ],
    [
      { subset: 'b', tables: [table('b1')] },
      { subset: 'a', tables: [table('a1'), table('a2')] },
      { subset: 'rest', tables: [table('r1')] },
    ],
  );
  expect(
    findings.map(({ check, severity, object, message }) => ({ check, severity, object, message })),
  ).toEqual([
    {
      check: 'crossing',
      severity: 'warning',
      object: 'b and rest',
      message: expect.stringMatching(
        /^between 40 and 40 captured transactions touched both; most often public.b1 with/,
      ) as string,
    },
    {
      check: 'crossing',
      severity: 'warning',
      object: 'a and b',
      message: expect.stringMatching(/^between 10 and 17 .* public.a1 with public.b1/) as string,
    },
  ]);
});
