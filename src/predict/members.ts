/** The members of the product's ensemble, in the order in which reports show them. */
import type { Forecaster } from './forecasters/forecaster.js';
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
];
