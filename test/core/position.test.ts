import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { compare, formatLsn, lsn, parseLsn } from '../../src/core/position.js';

describe('positions', () => {
  test('a log sequence number reads as 64 bits in two hexadecimal halves', () => {
    expect(parseLsn('0/0')).toBe(0n);
    expect(parseLsn('1/0')).toBe(2n ** 32n);
    expect(parseLsn('16/B374D848')).toBe(0x16b374d848n);
    expect(parseLsn('ffffffff/ffffffff')).toBe(2n ** 64n - 1n);
  });

  test('it is written as the server writes it', () => {
    expect(formatLsn(0x16b374d848n)).toBe('16/B374D848');
    expect(formatLsn(0n)).toBe('0/0');
    expect(formatLsn(1n)).toBe('0/1');
  });

  test('what was written reads back', () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), (value) => {
        expect(parseLsn(formatLsn(value))).toBe(value);
      }),
    );
  });

  test.each(['', '0', '0/', '/0', '0/0/0', '123456789/0', '0/123456789', 'g/0', ' 0/0', '0x1/0', '-1/0'])(
    '%j is refused',
    (text) => {
      expect(() => parseLsn(text)).toThrow(expect.objectContaining({ code: 'protocol-violation' }));
    },
  );

  test('they order as numbers, also where the text would not', () => {
    expect(compare(lsn(parseLsn('9/0')), lsn(parseLsn('10/0')))).toBe('before');
    expect(compare(lsn(parseLsn('A/0')), lsn(parseLsn('9/FFFFFFFF')))).toBe('after');
    expect(compare(lsn(5n), lsn(5n))).toBe('equal');
  });

  test('positions of different kinds are incomparable', () => {
    const other = { kind: 'gtid', value: 5n } as unknown as ReturnType<typeof lsn>;
    expect(compare(lsn(5n), other)).toBe('incomparable');
  });
});
