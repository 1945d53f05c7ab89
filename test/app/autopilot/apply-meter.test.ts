import { expect, test } from 'vitest';
import { ApplyMeter } from '../../../src/app/autopilot/apply-meter.js';
import type { StreamStatus } from '../../../src/core/ports.js';

test('the pace of a lane is known from two looks at it while it is late', () => {
  const meter = new ApplyMeter();
  const look = (second: number, lagMs: number | null, changesApplied: number): void => {
    const stream: Partial<StreamStatus> = { direction: 'forward', lagMs, changesApplied };
    meter.look({ streams: [stream as StreamStatus] }, second * 1000);
  };
  look(0, 50, 0);
  look(10, 40, 90_000);
  expect(meter.rate).toBeNull();
  look(20, 5_000, 100_000);
  look(30, 9_000, 130_000);
  look(30.1, 9_000, 130_001);
  look(40, 4_000, 150_000);
  expect(meter.rate).toMatchObject({ low: 2000, high: 3000, samples: 2 });
  // Its thread began anew; then it caught up.
  look(50, 9_000, 10);
  look(60, 30, 90_000);
  look(70, null, 90_000);
  look(80, 9_000, 190_000);
  expect(meter.rate?.samples).toBe(2);
  expect(new ApplyMeter().rate).toBeNull();
});
