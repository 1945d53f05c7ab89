/** A full refit of many subsets, with one LSTM among them, in steps that a worker can stop between. */
import { Ensemble, ENSEMBLE_DEFAULTS } from './ensemble.js';
import { lstm, LSTM_DEFAULTS, LstmTrainer, newNetwork } from './forecasters/lstm.js';
import { MEMBERS } from './members.js';
import type { Track } from './track.js';

export interface FitAllOptions {
  readonly horizons: readonly number[];
  /** Passes of the shared network over all subsets. */
  readonly passes: number;
  /** Latest buckets of each subset that a pass reads. */
  readonly stepsMax: number;
  readonly seed: number;
}

export interface FitProgress {
  readonly stage: 'training' | 'fitting';
  readonly done: number;
  /** Unknown while the shared network is trained. */
  readonly total: number | undefined;
}

export const FIT_ALL_DEFAULTS: FitAllOptions = { horizons: [1, 24, 168], passes: 1, stepsMax: 672, seed: 1 };

/** Of each past, the part that the shared network may see: the ensembles hold it to account on the rest. */
const HEAD = 0.6;

/**
 * Yields after each chunk of training and each subset; returns the ensembles in the order of the tracks. The shared
 * network is trained on the first part of every past alone, so that its weight in each ensemble is earned on buckets it
 * has not seen.
 */
export function* fitAll(
  tracks: readonly Track[],
  options: FitAllOptions = FIT_ALL_DEFAULTS,
): Generator<FitProgress, readonly Ensemble[]> {
  const { horizons, passes, stepsMax, seed } = options;
  const heads = tracks.map((track) => track.view(Math.floor(track.length * HEAD)));
  const trainer = new LstmTrainer(newNetwork(horizons, LSTM_DEFAULTS.hidden, seed), heads, stepsMax);
  for (let pass = 0; pass < passes; pass++) {
    for (let chunks = 1; !trainer.step(); chunks++)
      yield { stage: 'training', done: chunks, total: undefined };
  }
  const shared = lstm({ ...LSTM_DEFAULTS, network: trainer.network });
  const members = MEMBERS.map((member) => (member.name === shared.name ? shared : member));
  const ensembles: Ensemble[] = [];
  for (const track of tracks) {
    ensembles.push(new Ensemble(track, { ...ENSEMBLE_DEFAULTS, horizons, members }));
    yield { stage: 'fitting', done: ensembles.length, total: tracks.length };
  }
  return ensembles;
}
