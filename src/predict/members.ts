/** The members of the product's ensemble, in the order in which reports show them. */
import type { Forecaster } from './forecasters/forecaster.js';
import { holtWinters } from './forecasters/holt-winters.js';
import { kernel } from './forecasters/kernel.js';
import { lstm } from './forecasters/lstm.js';
import { markov } from './forecasters/markov.js';
import { profile } from './forecasters/profile.js';
import { ridge } from './forecasters/ridge.js';
import { seasonalNaive } from './forecasters/seasonal-naive.js';
import { spar } from './forecasters/spar.js';

export const MEMBERS: readonly Forecaster[] = [
  seasonalNaive('day'),
  seasonalNaive('week'),
  ridge,
  spar,
  profile,
  holtWinters,
  kernel,
  markov,
  lstm(),
];
