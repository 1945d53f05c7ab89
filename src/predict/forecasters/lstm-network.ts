/**
 * One LSTM layer with a linear head (Hochreiter & Schmidhuber 1997, with forget gates: Gers et al. 2000), forward and
 * backward in plain arrays, and Adam (Kingma & Ba 2015). Gradients are held against finite differences by a test.
 *
 * Layout of `weights`: four gates (input, forget, cell, output) × hidden rows of [inputs, hidden, 1], then outputs rows of
 * [hidden, 1].
 */
import { add, at } from '../numeric.js';
import type { Random } from '../random.js';

export interface Shape {
  readonly inputs: number;
  readonly hidden: number;
  readonly outputs: number;
}

export function weightCount({ inputs, hidden, outputs }: Shape): number {
  return 4 * hidden * (inputs + hidden + 1) + outputs * (hidden + 1);
}

export function initialWeights(shape: Shape, random: Random): Float64Array {
  const { inputs, hidden } = shape;
  const width = inputs + hidden + 1;
  const bound = 1 / Math.sqrt(hidden);
  const weights = Float64Array.from({ length: weightCount(shape) }, () => (random() * 2 - 1) * bound);
  // Open forget gates at the start: a cell that forgets at once never learns what to keep (Gers et al. 2000).
  for (let row = hidden; row < 2 * hidden; row++) weights[row * width + width - 1] = 1;
  const head = 4 * hidden * width;
  // A silent head: before it has learnt anything the network says "as the season".
  for (let index = head; index < weights.length; index++) weights[index] = at(weights, index) * 0.1;
  return weights;
}

/** What a sequence leaves behind. */
export interface CellState {
  readonly hidden: Float64Array;
  readonly cell: Float64Array;
}

export function emptyState({ hidden }: Shape): CellState {
  return { hidden: new Float64Array(hidden), cell: new Float64Array(hidden) };
}

function sigmoid(value: number): number {
  return 1 / (1 + Math.exp(-value));
}

/** Runs chunks of up to `stepsMax` steps, keeping what the backward pass needs. One at a time; reused. */
export class LstmRunner {
  readonly shape: Shape;
  readonly #width: number;
  readonly #head: number;
  /** Per step: [inputs, hidden before, 1]. */
  readonly #joined: Float64Array;
  /** Per step: the gates after their non-linearity, input, forget, cell, output. */
  readonly #gates: Float64Array;
  /** Per step, one more than steps: the cell before. */
  readonly #cells: Float64Array;
  readonly #hiddens: Float64Array;
  #steps = 0;

  constructor(shape: Shape, stepsMax: number) {
    const { inputs, hidden } = shape;
    this.shape = shape;
    this.#width = inputs + hidden + 1;
    this.#head = 4 * hidden * this.#width;
    this.#joined = new Float64Array(stepsMax * this.#width);
    this.#gates = new Float64Array(stepsMax * 4 * hidden);
    this.#cells = new Float64Array((stepsMax + 1) * hidden);
    this.#hiddens = new Float64Array((stepsMax + 1) * hidden);
  }

  /**
   * `inputs`: steps rows. Writes steps rows of outputs. Starts from `state` and leaves the last state in it.
   */
  forward(
    weights: Float64Array,
    inputs: Float64Array,
    steps: number,
    state: CellState,
    outputs: Float64Array,
  ): void {
    const { hidden } = this.shape;
    this.#steps = steps;
    this.#cells.set(state.cell, 0);
    this.#hiddens.set(state.hidden, 0);
    for (let step = 0; step < steps; step++) {
      this.#cellForward(weights, inputs, step);
      this.#headForward(weights, step, outputs);
    }
    state.cell.set(this.#cells.subarray(steps * hidden, (steps + 1) * hidden));
    state.hidden.set(this.#hiddens.subarray(steps * hidden, (steps + 1) * hidden));
  }

  #cellForward(weights: Float64Array, inputs: Float64Array, step: number): void {
    const { inputs: count, hidden } = this.shape;
    const width = this.#width;
    const joined = step * width;
    for (let i = 0; i < count; i++) this.#joined[joined + i] = at(inputs, step * count + i);
    for (let i = 0; i < hidden; i++) this.#joined[joined + count + i] = at(this.#hiddens, step * hidden + i);
    this.#joined[joined + width - 1] = 1;
    const gates = step * 4 * hidden;
    // The two loops of the gates are nearly all of the work: they read their arrays without a call.
    const stored = this.#joined;
    for (let row = 0; row < 4 * hidden; row++) {
      let sum = 0;
      const base = row * width;
      for (let i = 0; i < width; i++) sum += (weights[base + i] as number) * (stored[joined + i] as number);
      this.#gates[gates + row] = row >= 2 * hidden && row < 3 * hidden ? Math.tanh(sum) : sigmoid(sum);
    }
    for (let i = 0; i < hidden; i++) {
      const keep = at(this.#gates, gates + hidden + i) * at(this.#cells, step * hidden + i);
      const cell = keep + at(this.#gates, gates + i) * at(this.#gates, gates + 2 * hidden + i);
      this.#cells[(step + 1) * hidden + i] = cell;
      this.#hiddens[(step + 1) * hidden + i] = at(this.#gates, gates + 3 * hidden + i) * Math.tanh(cell);
    }
  }

  #headForward(weights: Float64Array, step: number, outputs: Float64Array): void {
    const { hidden, outputs: count } = this.shape;
    for (let output = 0; output < count; output++) {
      const base = this.#head + output * (hidden + 1);
      let sum = at(weights, base + hidden);
      for (let i = 0; i < hidden; i++)
        sum += at(weights, base + i) * at(this.#hiddens, (step + 1) * hidden + i);
      outputs[step * count + output] = sum;
    }
  }

  /** Adds to `gradient` that of the last chunk, given the loss's derivative by each output. */
  backward(weights: Float64Array, byOutput: Float64Array, gradient: Float64Array): void {
    const { hidden } = this.shape;
    const byHidden = new Float64Array(hidden);
    const byCell = new Float64Array(hidden);
    const byGate = new Float64Array(4 * hidden);
    for (let step = this.#steps - 1; step >= 0; step--) {
      this.#headBackward(weights, byOutput, step, byHidden, gradient);
      this.#gatesBackward(step, byHidden, byCell, byGate);
      this.#weightsBackward(weights, step, byGate, byHidden, gradient);
    }
  }

  #headBackward(
    weights: Float64Array,
    byOutput: Float64Array,
    step: number,
    byHidden: Float64Array,
    gradient: Float64Array,
  ): void {
    const { hidden, outputs: count } = this.shape;
    for (let output = 0; output < count; output++) {
      const slope = at(byOutput, step * count + output);
      if (slope === 0) continue;
      const base = this.#head + output * (hidden + 1);
      for (let i = 0; i < hidden; i++) {
        add(gradient, base + i, slope * at(this.#hiddens, (step + 1) * hidden + i));
        add(byHidden, i, slope * at(weights, base + i));
      }
      add(gradient, base + hidden, slope);
    }
  }

  /** From the derivatives by hidden and cell after the step to those by the gates' sums and by the cell before. */
  #gatesBackward(step: number, byHidden: Float64Array, byCell: Float64Array, byGate: Float64Array): void {
    const { hidden } = this.shape;
    const gates = step * 4 * hidden;
    for (let i = 0; i < hidden; i++) {
      const input = at(this.#gates, gates + i);
      const forget = at(this.#gates, gates + hidden + i);
      const candidate = at(this.#gates, gates + 2 * hidden + i);
      const output = at(this.#gates, gates + 3 * hidden + i);
      const squashed = Math.tanh(at(this.#cells, (step + 1) * hidden + i));
      const cell = at(byCell, i) + at(byHidden, i) * output * (1 - squashed * squashed);
      byGate[i] = cell * candidate * input * (1 - input);
      byGate[hidden + i] = cell * at(this.#cells, step * hidden + i) * forget * (1 - forget);
      byGate[2 * hidden + i] = cell * input * (1 - candidate * candidate);
      byGate[3 * hidden + i] = at(byHidden, i) * squashed * output * (1 - output);
      byCell[i] = cell * forget;
    }
  }

  #weightsBackward(
    weights: Float64Array,
    step: number,
    byGate: Float64Array,
    byHidden: Float64Array,
    gradient: Float64Array,
  ): void {
    const { inputs, hidden } = this.shape;
    const width = this.#width;
    const joined = step * width;
    const stored = this.#joined;
    byHidden.fill(0);
    for (let row = 0; row < 4 * hidden; row++) {
      const slope = at(byGate, row);
      const base = row * width;
      for (let i = 0; i < width; i++) {
        gradient[base + i] = (gradient[base + i] as number) + slope * (stored[joined + i] as number);
      }
      for (let i = 0; i < hidden; i++) {
        byHidden[i] = (byHidden[i] as number) + slope * (weights[base + inputs + i] as number);
      }
    }
  }
}

const FIRST_DECAY = 0.9;
const SECOND_DECAY = 0.999;
/** Gradients longer than this are shortened to it, so that one wild chunk can't throw the weights away. */
const NORM_MAX = 1;

export class Adam {
  readonly #first: Float64Array;
  readonly #second: Float64Array;
  #steps = 0;

  constructor(count: number) {
    this.#first = new Float64Array(count);
    this.#second = new Float64Array(count);
  }

  /** Moves `weights` against `gradient`, and clears `gradient`. */
  step(weights: Float64Array, gradient: Float64Array, rate: number): void {
    this.#steps += 1;
    let norm = 0;
    for (let index = 0; index < gradient.length; index++) norm += at(gradient, index) ** 2;
    const scale = Math.min(1, NORM_MAX / (Math.sqrt(norm) + 1e-12));
    const firstBias = 1 - FIRST_DECAY ** this.#steps;
    const secondBias = 1 - SECOND_DECAY ** this.#steps;
    for (let index = 0; index < weights.length; index++) {
      const slope = at(gradient, index) * scale;
      const first = FIRST_DECAY * at(this.#first, index) + (1 - FIRST_DECAY) * slope;
      const second = SECOND_DECAY * at(this.#second, index) + (1 - SECOND_DECAY) * slope * slope;
      this.#first[index] = first;
      this.#second[index] = second;
      add(weights, index, (-rate * (first / firstBias)) / (Math.sqrt(second / secondBias) + 1e-8));
      gradient[index] = 0;
    }
  }
}
