import { expect, test } from 'vitest';
import { lstm, LSTM_DEFAULTS, LstmTrainer, newNetwork } from '../../src/predict/forecasters/lstm.js';
import {
  Adam,
  emptyState,
  initialWeights,
  LstmRunner,
  weightCount,
} from '../../src/predict/forecasters/lstm-network.js';
import { normal, seededRandom } from '../../src/predict/random.js';
import { noisyWeekly, trackOf } from './patterns.js';

const SHAPE = { inputs: 3, hidden: 4, outputs: 2 };
const STEPS = 6;

test('the backward pass agrees with finite differences in every weight', () => {
  const random = seededRandom(9);
  const weights = initialWeights(SHAPE, random);
  const inputs = Float64Array.from({ length: STEPS * SHAPE.inputs }, () => normal(random));
  const targets = Float64Array.from({ length: STEPS * SHAPE.outputs }, () => normal(random));
  const outputs = new Float64Array(targets.length);
  const runner = new LstmRunner(SHAPE, STEPS);
  const start = emptyState(SHAPE);
  start.cell.fill(0.3);
  start.hidden.fill(-0.2);
  const loss = (): number => {
    const state = { cell: start.cell.slice(), hidden: start.hidden.slice() };
    runner.forward(weights, inputs, STEPS, state, outputs);
    return outputs.reduce((sum, output, index) => sum + 0.5 * (output - (targets[index] ?? 0)) ** 2, 0);
  };
  loss();
  const gradient = new Float64Array(weightCount(SHAPE));
  runner.backward(
    weights,
    outputs.map((output, index) => output - (targets[index] ?? 0)),
    gradient,
  );
  const nudge = 1e-5;
  for (let index = 0; index < weights.length; index++) {
    const value = weights[index] ?? 0;
    weights[index] = value + nudge;
    const above = loss();
    weights[index] = value - nudge;
    const below = loss();
    weights[index] = value;
    expect(Math.abs((above - below) / (2 * nudge) - (gradient[index] ?? 0))).toBeLessThan(1e-7);
  }
});

test('Adam finds the bottom of a bowl', () => {
  const weights = Float64Array.of(3, -2);
  const adam = new Adam(2);
  for (let step = 0; step < 500; step++) {
    adam.step(
      weights,
      weights.map((weight) => 2 * weight),
      0.05,
    );
  }
  expect(Math.hypot(...weights)).toBeLessThan(0.01);
});

test('training is deterministic, can be stopped between chunks, and serves several series with one network', () => {
  const tracks = [1, 2].map((seed) => trackOf(6 * 168, noisyWeekly(6 * 168, seed)));
  const train = (): Float64Array => {
    const trainer = new LstmTrainer(newNetwork([1, 24], 6, 5), tracks, 1_000);
    for (let step = 0; step < 20; step++) trainer.step();
    return trainer.network.weights;
  };
  const once = train();
  expect(train()).toEqual(once);
  expect(once).not.toEqual(newNetwork([1, 24], 6, 5).weights);
});

test('learns that deviations last: beats the season one step ahead after training, on buckets it has not seen', () => {
  const length = 10 * 168;
  const count = noisyWeekly(length, 6, 0.3);
  const errorAfter = (epochs: number): number => {
    const track = trackOf(length, count).view(9 * 168);
    const model = lstm({ ...LSTM_DEFAULTS, hidden: 8, epochs }).fit(track, [1]);
    const out = new Float64Array(1);
    let error = 0;
    for (;;) {
      model.forecast(track, [1], out);
      if (!track.advance()) return error;
      model.update(track);
      error += Math.abs((out[0] ?? 0) - (track.levels[track.length - 1] ?? 0));
    }
  };
  expect(errorAfter(6)).toBeLessThan(0.7 * errorAfter(0));
});
