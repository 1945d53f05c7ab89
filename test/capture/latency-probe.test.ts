import { expect, test } from 'vitest';
import { LatencyProbe } from '../../src/capture/latency-probe.js';
import { TapRelay, type CaptureBatch } from '../../src/capture/relay.js';
import type { StatementTap } from '../../src/core/capture-ports.js';

function offer(tap: StatementTap, micros: number): void {
  const empty = Buffer.alloc(0);
  tap.offer(1, Buffer.from('SELECT 1'), micros, 1, 10, 10, false, 73, 1, 0, empty);
}

test('statements are counted by how long they took, in this process and in others, and handed on', () => {
  const batches: CaptureBatch[] = [];
  const relay = new TapRelay({ ringBytes: 65_536, textBytesMax: 100, send: (batch) => batches.push(batch) });
  const probe = new LatencyProbe();
  const tap = probe.tap(relay.tap);
  for (const micros of [5, 5, 1000]) offer(tap, micros);
  expect(probe.take()).toEqual([
    { upToMicros: 5, count: 2 },
    { upToMicros: 1023, count: 1 },
  ]);
  expect(probe.take()).toEqual([]);

  relay.close();
  for (const batch of batches) probe.receive(batch);
  expect(probe.take()).toEqual([
    { upToMicros: 5, count: 2 },
    { upToMicros: 1023, count: 1 },
  ]);
  offer(probe.tap(null), 7);
  expect(probe.take()).toEqual([{ upToMicros: 7, count: 1 }]);
});
