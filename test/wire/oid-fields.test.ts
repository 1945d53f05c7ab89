/** OIDs rewritten in place, whatever a message claims to hold. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  rewriteFunctionCall,
  rewriteParameterDescription,
  rewriteParse,
  rewriteRowDescription,
} from '../../src/wire/postgres/oid-fields.js';
import { parse } from '../proxy/differential/frames.js';

const types = new Map([
  [70_001, 80_001],
  [70_002, 70_001],
]);

test('a Parse has its types rewritten, and its text left alone', () => {
  const frame = parse('SELECT $1', 'name', [70_001, 23, 70_002, 0]);
  rewriteParse(frame, 5, frame.length, types);
  expect(frame).toEqual(parse('SELECT $1', 'name', [80_001, 23, 70_001, 0]));
});

test('nothing is written outside the payload, and no length makes it read there', () => {
  const rewrites = [
    (bytes: Buffer, start: number, end: number) => rewriteParse(bytes, start, end, types),
    (bytes: Buffer, start: number, end: number) => rewriteFunctionCall(bytes, start, end, types),
    (bytes: Buffer, start: number, end: number) => rewriteParameterDescription(bytes, start, end, types),
    (bytes: Buffer, start: number, end: number) => rewriteRowDescription(bytes, start, end, types, types),
  ];
  const known = Buffer.from([0, 1, 0x11, 0x71]);
  expect(types.has(known.readUInt32BE(0))).toBe(true);
  const payload = fc
    .array(fc.oneof(fc.constant(known), fc.uint8Array({ maxLength: 6 }), fc.constant(Buffer.from([0, 0]))), {
      maxLength: 12,
    })
    .map((parts) => Buffer.concat(parts));
  fc.assert(
    fc.property(payload, fc.nat({ max: rewrites.length - 1 }), (inner, which) => {
      const guard = Buffer.concat([known, known]);
      const bytes = Buffer.concat([guard, inner, guard]);
      rewrites[which]?.(bytes, guard.length, guard.length + inner.length);
      const untouched =
        bytes.subarray(0, guard.length).equals(guard) &&
        bytes.subarray(guard.length + inner.length).equals(guard);
      return untouched;
    }),
    { numRuns: 3000 },
  );
});
