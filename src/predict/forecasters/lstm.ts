/**
 * The LSTM as a member. It never sees raw loads: its inputs are how far each bucket lay from its season (in units usual
 * for the series) and where in day and week it is, its outputs the same deviation at each horizon. So one network serves
 * every series, busy or idle, and an untrained one says what the season says.
 *
 * Training walks a series in chunks, the state carried from chunk to chunk (truncated back-propagation through time,
 * Williams & Peng 1990), an Adam step after each. {@link LstmTrainer} does one chunk per `step`, so that whoever runs it
 * can stop between two.
 */
import { at, clamp, medianOf } from '../numeric.js';
import { seededRandom } from '../random.js';
import type { Track } from '../track.js';
import { Deviations, firstSeason, seasonalMean } from './deviations.js';
import type { ForecastModel, Forecaster } from './forecaster.js';
import { Adam, emptyState, initialWeights, LstmRunner, type CellState, type Shape } from './lstm-network.js';

const WEEKS = 3;
const INPUTS = 7;
const CHUNK = 48;
/** How many days before the present a fitted network starts to listen. */
const WARM_UP_DAYS = 3;
const RATE = 0.004;
/** Targets beyond this many usual deviations pull no harder than it. */
const ERROR_MAX = 3;

export interface LstmNetwork {
  readonly shape: Shape;
  readonly horizons: readonly number[];
  readonly weights: Float64Array;
}

export interface LstmOptions {
  readonly hidden: number;
  readonly seed: number;
  /** Passes over the past at the first fit, and at each later one. */
  readonly epochs: number;
  readonly epochsAgain: number;
  /** Latest buckets trained on. */
  readonly stepsMax: number;
  /** A network trained on many series; then `fit` trains nothing. */
  readonly network?: LstmNetwork;
}

export const LSTM_DEFAULTS: LstmOptions = { hidden: 24, seed: 1, epochs: 8, epochsAgain: 1, stepsMax: 4_032 };

/** What the network sees of one track. */
class Lens {
  readonly track: Track;
  readonly #deviations: Deviations;
  readonly #period: number;
  readonly #scale: number;

  constructor(track: Track) {
    this.track = track;
    this.#period = track.length >= (WEEKS + 2) * track.perWeek ? track.perWeek : track.perDay;
    this.#deviations = new Deviations(track, this.#period, WEEKS);
    const sizes: number[] = [];
    for (let index = this.#deviations.first; index < track.length; index += 5) {
      sizes.push(Math.abs(this.#deviations.at(index)));
    }
    this.#scale = Math.max(0.02, medianOf(sizes) * 1.5);
  }

  get first(): number {
    return this.#deviations.first + this.track.perDay;
  }

  update(track: Track): void {
    this.#deviations.update(track);
  }

  input(index: number, out: Float64Array, offset: number): void {
    const { perDay, perWeek } = this.track;
    const slot = this.track.slot(index);
    const day = (2 * Math.PI * (slot % perDay)) / perDay;
    const week = (2 * Math.PI * slot) / perWeek;
    out[offset] = clamp(this.#deviations.at(index) / this.#scale, -5, 5);
    out[offset + 1] = clamp(this.#deviations.at(index - perDay + 1) / this.#scale, -5, 5);
    out[offset + 2] = Math.sin(day);
    out[offset + 3] = Math.cos(day);
    out[offset + 4] = Math.sin(week);
    out[offset + 5] = Math.cos(week);
    out[offset + 6] = clamp(this.#deviations.mean(index, perDay) / this.#scale, -5, 5);
  }

  base(track: Track, last: number, horizon: number): number {
    const nearest = last + horizon - firstSeason(horizon, this.#period) * this.#period;
    return seasonalMean(track, nearest + this.#period, this.#period, WEEKS);
  }

  /** The first index from which the base of `horizon` is whole. */
  baseFrom(horizon: number): number {
    return (firstSeason(horizon, this.#period) + WEEKS - 1) * this.#period - horizon;
  }

  target(track: Track, last: number, horizon: number): number {
    return (at(track.levels, last + horizon) - this.base(track, last, horizon)) / this.#scale;
  }

  level(output: number, base: number): number {
    return Math.max(0, base + clamp(output, -8, 8) * this.#scale);
  }
}

/** Trains one network on any number of tracks, one chunk per `step`. Deterministic. */
export class LstmTrainer {
  readonly #network: LstmNetwork;
  readonly #lenses: readonly Lens[];
  readonly #stepsMax: number;
  readonly #runner: LstmRunner;
  readonly #adam: Adam;
  readonly #gradient: Float64Array;
  readonly #inputs: Float64Array;
  readonly #outputs: Float64Array;
  #lens = 0;
  #from = -1;
  #state: CellState;

  constructor(network: LstmNetwork, tracks: readonly Track[], stepsMax: number) {
    this.#network = { ...network, weights: network.weights.slice() };
    this.#stepsMax = stepsMax;
    this.#lenses = tracks
      .map((track) => new Lens(track))
      .filter((lens) => lens.first + CHUNK < lens.track.length);
    this.#runner = new LstmRunner(network.shape, CHUNK);
    this.#adam = new Adam(network.weights.length);
    this.#gradient = new Float64Array(network.weights.length);
    this.#inputs = new Float64Array(CHUNK * INPUTS);
    this.#outputs = new Float64Array(CHUNK * network.shape.outputs);
    this.#state = emptyState(network.shape);
  }

  /** The network as trained so far. */
  get network(): LstmNetwork {
    return this.#network;
  }

  /** Trains on the next chunk. True when that ended a pass over all tracks (or there is nothing to train on). */
  step(rate = RATE): boolean {
    const lens = this.#lenses[this.#lens];
    if (lens === undefined) return true;
    const { track } = lens;
    if (this.#from < 0) {
      this.#from = Math.max(lens.first, track.length - this.#stepsMax);
      this.#state = emptyState(this.#network.shape);
    }
    const steps = Math.min(CHUNK, track.length - this.#from);
    for (let step = 0; step < steps; step++) lens.input(this.#from + step, this.#inputs, step * INPUTS);
    this.#runner.forward(this.#network.weights, this.#inputs, steps, this.#state, this.#outputs);
    if (this.#slopes(lens, steps)) {
      this.#runner.backward(this.#network.weights, this.#outputs, this.#gradient);
      this.#adam.step(this.#network.weights, this.#gradient, rate);
    }
    this.#from += steps;
    if (this.#from < track.length) return false;
    this.#from = -1;
    this.#lens = (this.#lens + 1) % this.#lenses.length;
    return this.#lens === 0;
  }

  /** Turns outputs into the loss's derivatives (Huber), in place. False where no target is known. */
  #slopes(lens: Lens, steps: number): boolean {
    const { horizons } = this.#network;
    const { track } = lens;
    let any = false;
    for (let step = 0; step < steps; step++) {
      const last = this.#from + step;
      for (const [h, horizon] of horizons.entries()) {
        const cell = step * horizons.length + h;
        const known =
          last + horizon < track.length && last >= lens.baseFrom(horizon) && track.observed[last + horizon];
        if (known !== 1) {
          this.#outputs[cell] = 0;
          continue;
        }
        any = true;
        const error = at(this.#outputs, cell) - clamp(lens.target(track, last, horizon), -8, 8);
        this.#outputs[cell] = clamp(error, -ERROR_MAX, ERROR_MAX) / (steps * horizons.length);
      }
    }
    return any;
  }
}

class LstmModel implements ForecastModel {
  readonly network: LstmNetwork;
  readonly #lens: Lens;
  readonly #runner: LstmRunner;
  readonly #state: CellState;
  readonly #input = new Float64Array(INPUTS);
  readonly #outputs: Float64Array;
  #next: number;

  constructor(network: LstmNetwork, track: Track) {
    this.network = network;
    this.#lens = new Lens(track);
    this.#runner = new LstmRunner(network.shape, 1);
    this.#state = emptyState(network.shape);
    this.#outputs = new Float64Array(network.shape.outputs);
    this.#next = Math.max(track.perDay, track.length - WARM_UP_DAYS * track.perDay);
    this.#listen(track);
  }

  update(track: Track): void {
    this.#lens.update(track);
    this.#listen(track);
  }

  forecast(track: Track, horizons: readonly number[], out: Float64Array): void {
    const last = track.length - 1;
    for (const [index, horizon] of horizons.entries()) {
      const fitted = this.network.horizons.findIndex((one) => one >= horizon);
      const output = at(this.#outputs, fitted === -1 ? this.network.horizons.length - 1 : fitted);
      const whole = last >= this.#lens.baseFrom(horizon);
      out[index] = whole
        ? this.#lens.level(output, this.#lens.base(track, last, horizon))
        : at(track.levels, last);
    }
  }

  #listen(track: Track): void {
    for (; this.#next < track.length; this.#next++) {
      this.#lens.input(this.#next, this.#input, 0);
      this.#runner.forward(this.network.weights, this.#input, 1, this.#state, this.#outputs);
    }
  }
}

export function newNetwork(horizons: readonly number[], hidden: number, seed: number): LstmNetwork {
  const shape = { inputs: INPUTS, hidden, outputs: horizons.length };
  return { shape, horizons, weights: initialWeights(shape, seededRandom(seed)) };
}

export function lstm(options: LstmOptions = LSTM_DEFAULTS): Forecaster {
  return {
    name: 'lstm',
    stepsMin: (track, horizons) =>
      (WEEKS + firstSeason(Math.max(...horizons), track.perDay)) * track.perDay + 2 * track.perDay + CHUNK,
    fit(track, horizons, previous) {
      if (options.network !== undefined) return new LstmModel(options.network, track);
      const again = previous instanceof LstmModel;
      const start = again ? previous.network : newNetwork(horizons, options.hidden, options.seed);
      const trainer = new LstmTrainer(start, [track], options.stepsMax);
      const epochs = again ? options.epochsAgain : options.epochs;
      for (let epoch = 0; epoch < epochs; epoch++) {
        while (!trainer.step(again ? RATE / 2 : RATE * (1 - epoch / (epochs + 1))));
      }
      return new LstmModel(trainer.network, track);
    },
  };
}
