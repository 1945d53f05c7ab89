import { expect, test } from 'vitest';
import { HeldInput } from '../../../src/proxy/session/held-input.js';

test('a client is read until what is waited for can be there, and no further', () => {
  let paused = false;
  const held = new HeldInput({
    bytesMax: () => 1000,
    nowMs: () => 0,
    pauseClient: () => (paused = true),
    resumeClient: () => (paused = false),
  });
  held.keep(Buffer.alloc(1500));
  expect(paused).toBe(true);
  held.waitsFor(4000);
  expect(paused).toBe(false);
  held.keep(Buffer.alloc(2500));
  expect([paused, held.full]).toEqual([false, false]);
  held.keep(Buffer.alloc(1));
  expect([paused, held.full]).toEqual([true, true]);
  held.waitsFor(0);
  expect(paused).toBe(true);
});
