/**
 * One series' forecast: the members' medians mixed in log space, weighted by how well each did lately, without the outer
 * quarters: where a few repeat an outage, or a day like no other, they are outvoted rather than averaged in.
 *
 * 1. `fit` cuts the past in two, fits every member on the first part and replays the second bucket by bucket, exactly
 *    as if it were live: forecast, then learn what came. So losses, weights, intervals and alarms after a fit rest on
 *    forecasts made without knowledge of their targets.
 * 2. Then every member is fitted again on all that is known.
 * 3. `observe` takes in one closed bucket; `refit` fits the members anew and keeps what was learnt about them.
 *
 * Weights per horizon: absolute error in levels, discounted with a half-life, in relation to the best. A member that
 * does not beat the better seasonal naive has weight 0. (Inverse-loss weights: Bates & Granger 1969; discounting:
 * Stock & Watson 2004, who find medians and trimmed means of forecasts to be the sturdier; both in Timmermann, "Forecast
 * combinations", 2006.)
 *
 * Invariants: what is forecast is finite; a bucket that was not observed changes no loss.
 */
import { ChangeDetector, type Alarm } from './change-point.js';
import { ConformalBand } from './conformal.js';
import type { ForecastModel, Forecaster } from './forecasters/forecaster.js';
import { at, clamp, WeightedMiddle } from './numeric.js';
import type { Track } from './track.js';

export interface EnsembleOptions {
  /** Steps ahead, ascending: those that the members are fitted for and whose losses are kept. */
  readonly horizons: readonly number[];
  /** The better of those named `naive-*` is the bar the others must pass. */
  readonly members: readonly Forecaster[];
  readonly coverage: number;
  /** Age at which a loss counts half, in days. */
  readonly lossHalfLifeDays: number;
  /** How sharply weights follow losses. */
  readonly sharpness: number;
  /** Errors larger than this many levels count as this: one blizzard must not decide. */
  readonly lossMax: number;
}

export const ENSEMBLE_DEFAULTS = {
  coverage: 0.9,
  lossHalfLifeDays: 14,
  sharpness: 4,
  lossMax: 1,
} as const;

export interface Fan {
  /** Counts per bucket, not levels. */
  readonly median: number;
  readonly low: number;
  readonly high: number;
}

interface Member {
  readonly forecaster: Forecaster;
  model: ForecastModel | undefined;
  /** Discounted sum of errors and of their weights, per horizon. */
  readonly losses: Float64Array;
  readonly counts: Float64Array;
}

/** What was forecast for the buckets to come, per horizon: a ring as long as the horizon. */
interface Pending {
  readonly horizon: number;
  /** Row per target: mixed median, lower and upper offset, then each member's; NaN where it had nothing to say. */
  readonly rows: Float64Array;
}

/** Of a count of 5·10¹⁷ per bucket: beyond any database. */
const LEVEL_MAX = 40.75;
/** Share of the evidence on the members that outlives an alarm: a shorter history for the weights. */
const ALARM_KEEPS = 0.25;
/** Weight at either end of the members' forecasts that counts for nothing. */
const OUTER_SHARE = 0.25;
/** Of a pending row, before the members'. */
const OWN_COLUMNS = 3;

export class Ensemble {
  readonly #options: EnsembleOptions;
  readonly #members: readonly Member[];
  readonly #bands: readonly ConformalBand[];
  readonly #pending: readonly Pending[];
  readonly #detector = new ChangeDetector();
  readonly #decay: number;
  #track: Track;
  #alarms: Alarm[] = [];
  #scale = 0.1;
  /** Weights per horizon; undefined after what they rest on has changed. */
  #shares: readonly Float64Array[] | undefined;

  /** Fits at once. `track` stays the caller's: {@link observe} is called after it has grown. */
  constructor(track: Track, options: EnsembleOptions) {
    const { horizons, members } = options;
    this.#options = options;
    this.#track = track;
    this.#decay = 0.5 ** (1 / (options.lossHalfLifeDays * track.perDay));
    this.#members = members.map((forecaster) => ({
      forecaster,
      model: undefined,
      losses: new Float64Array(horizons.length),
      counts: new Float64Array(horizons.length),
    }));
    this.#bands = horizons.map(() => new ConformalBand(options.coverage, track.perDay));
    this.#pending = horizons.map((horizon) => ({
      horizon,
      rows: new Float64Array(horizon * (members.length + OWN_COLUMNS)).fill(Number.NaN),
    }));
    this.#backTest();
  }

  get alarms(): readonly Alarm[] {
    return this.#alarms;
  }

  /** Errors that the interval at the horizon of this index rests on. */
  evidence(horizonIndex: number): number {
    return this.#bands[horizonIndex]?.count ?? 0;
  }

  /** Fits the members anew on all that is known. Losses, intervals and pending forecasts stay. */
  refit(): void {
    for (const member of this.#members) this.#fitMember(member, this.#track);
  }

  /** Takes in the bucket that the track has just learnt, then forecasts from there. */
  observe(): void {
    this.#learn(this.#track);
    for (const { model } of this.#members) model?.update(this.#track);
    this.#predict(this.#track);
  }

  /** Share of each member at the horizon of this index; sums to 1, unless no member has anything to say. */
  weights(horizonIndex: number): Readonly<Record<string, number>> {
    const weights = this.#weights(horizonIndex);
    return Object.fromEntries(
      this.#members.map((member, index) => [member.forecaster.name, at(weights, index)]),
    );
  }

  /** Medians in levels for any horizons, each with the weights of the nearest fitted horizon at or above it. */
  levels(horizons: readonly number[]): Float64Array {
    return this.#mix(this.#track, horizons).mixed;
  }

  /** Member medians in levels, by name, for horizons of the fit; for reports and benches. */
  memberLevels(horizons: readonly number[]): ReadonlyMap<string, Float64Array> {
    const out = new Map<string, Float64Array>();
    for (const { forecaster, model } of this.#members) {
      if (model === undefined) continue;
      const levels = new Float64Array(horizons.length);
      model.forecast(this.#track, horizons, levels);
      out.set(forecaster.name, levels);
    }
    return out;
  }

  forecast(horizons: readonly number[]): readonly Fan[] {
    const levels = this.levels(horizons);
    const { perDay } = this.#track;
    return horizons.map((horizon, index) => {
      const level = at(levels, index);
      const band = this.#bands[this.#horizonIndex(horizon)];
      const slot = this.#track.slot(this.#track.length - 1 + horizon) % perDay;
      const [low, high] = band?.offsets(slot, perDay) ?? [-1, 1];
      return {
        median: count(level),
        low: count(level + low),
        high: count(level + high),
      };
    });
  }

  #backTest(): void {
    const track = this.#track;
    const replay = Math.min(Math.floor(track.length * 0.4), track.perWeek * 5);
    const view = track.view(track.length - replay);
    for (const member of this.#members) this.#fitMember(member, view);
    const fitEvery = track.perWeek * 2;
    this.#predict(view);
    for (let step = 1; view.advance(); step++) {
      this.#learn(view);
      for (const { model } of this.#members) model?.update(view);
      this.#predict(view);
      if (step % fitEvery === 0) for (const member of this.#members) this.#fitMember(member, view);
    }
    this.refit();
    this.#predict(track);
  }

  #fitMember(member: Member, track: Track): void {
    const { horizons } = this.#options;
    if (track.length >= member.forecaster.stepsMin(track, horizons)) {
      member.model = member.forecaster.fit(track, horizons, member.model);
      this.#shares = undefined;
    }
  }

  /** Compares the newest bucket with what was forecast for it at each horizon. */
  #learn(track: Track): void {
    this.#shares = undefined;
    const index = track.length - 1;
    if (track.observed[index] === 0) return;
    const actual = at(track.levels, index);
    const width = this.#members.length + OWN_COLUMNS;
    const slot = track.slot(index) % track.perDay;
    for (const [h, { horizon, rows }] of this.#pending.entries()) {
      const row = (index % horizon) * width;
      const mixed = at(rows, row);
      if (Number.isNaN(mixed)) continue;
      const promised = [at(rows, row + 1), at(rows, row + 2)] as const;
      this.#bands[h]?.add(actual - mixed, promised, slot, track.perDay);
      if (h === 0) this.#watch(actual - mixed, index);
      for (const [m, member] of this.#members.entries()) {
        const forecast = at(rows, row + OWN_COLUMNS + m);
        if (Number.isNaN(forecast)) continue;
        const error = Math.min(Math.abs(actual - forecast), this.#options.lossMax);
        member.losses[h] = at(member.losses, h) * this.#decay + error;
        member.counts[h] = at(member.counts, h) * this.#decay + 1;
      }
    }
  }

  #watch(error: number, index: number): void {
    const alarm = this.#detector.add(error / Math.max(0.01, this.#scale * 1.25), index);
    this.#scale += 0.01 * (Math.min(Math.abs(error), 5 * this.#scale) - this.#scale);
    if (alarm === undefined) return;
    this.#alarms = [...this.#alarms.slice(-15), alarm];
    for (const band of this.#bands) band.widen(1.5);
    // What the members were worth before the change says less about them now. Beyond a day ahead the next errors to come
    // are still of forecasts made before it: there the old evidence is the better one.
    for (const { losses, counts } of this.#members) {
      for (const [h, horizon] of this.#options.horizons.entries()) {
        if (horizon > this.#track.perDay) continue;
        losses[h] = at(losses, h) * ALARM_KEEPS;
        counts[h] = at(counts, h) * ALARM_KEEPS;
      }
    }
  }

  #predict(track: Track): void {
    const { mixed, own } = this.#mix(track, this.#options.horizons);
    const width = this.#members.length + OWN_COLUMNS;
    const last = track.length - 1;
    for (const [h, { horizon, rows }] of this.#pending.entries()) {
      const row = ((last + horizon) % horizon) * width;
      rows[row] = at(mixed, h);
      const slot = track.slot(last + horizon) % track.perDay;
      const [low, high] = this.#bands[h]?.offsets(slot, track.perDay) ?? [-1, 1];
      rows[row + 1] = low;
      rows[row + 2] = high;
      for (const [m, levels] of own.entries())
        rows[row + OWN_COLUMNS + m] = levels === undefined ? Number.NaN : at(levels, h);
    }
  }

  #mix(
    track: Track,
    horizons: readonly number[],
  ): { readonly mixed: Float64Array; readonly own: readonly (Float64Array | undefined)[] } {
    const mixed = new Float64Array(horizons.length);
    const own = this.#members.map(({ model }) => {
      if (model === undefined) return undefined;
      const levels = new Float64Array(horizons.length);
      model.forecast(track, horizons, levels);
      return levels;
    });
    const weights = (this.#shares ??= this.#options.horizons.map((_, index) => this.#weights(index)));
    const middle = new WeightedMiddle(own.length, OUTER_SHARE);
    for (const [index, horizon] of horizons.entries()) {
      const shares = weights[this.#horizonIndex(horizon)];
      middle.clear();
      for (const [m, levels] of own.entries())
        if (levels !== undefined && shares !== undefined) middle.add(at(levels, index), at(shares, m));
      mixed[index] = middle.mean() ?? (track.length > 0 ? recentLevel(track) : 0);
    }
    return { mixed, own };
  }

  #horizonIndex(horizon: number): number {
    const index = this.#options.horizons.findIndex((one) => one >= horizon);
    return index === -1 ? this.#options.horizons.length - 1 : index;
  }

  #weights(horizonIndex: number): Float64Array {
    const members = this.#members;
    const weights = new Float64Array(members.length);
    const loss = (member: Member): number =>
      member.model === undefined || at(member.counts, horizonIndex) === 0
        ? Number.POSITIVE_INFINITY
        : at(member.losses, horizonIndex) / at(member.counts, horizonIndex);
    const naive = members.filter(isNaive);
    const bar = Math.min(...naive.map(loss));
    // Day and week say the same at whole weeks: only one of them counts, the week, which also holds between them.
    const better = naive.findLast((member) => loss(member) === bar);
    let best = bar;
    for (const member of members) best = Math.min(best, loss(member));
    let sum = 0;
    for (const [index, member] of members.entries()) {
      const own = loss(member);
      const counts = Number.isFinite(own) && (isNaive(member) ? member === better : own < bar);
      if (!counts) continue;
      weights[index] = ((best + 1e-9) / (own + 1e-9)) ** this.#options.sharpness;
      sum += at(weights, index);
    }
    if (sum === 0) return withoutEvidence(members);
    return weights.map((weight) => weight / sum);
  }
}

function isNaive(member: Member): boolean {
  return member.forecaster.name.startsWith('naive');
}

/** Nothing has been held against its target yet: the naive members that can speak share equally. */
function withoutEvidence(members: readonly Member[]): Float64Array {
  const able = members.map((member) => isNaive(member) && member.model !== undefined);
  const count = able.filter(Boolean).length;
  return Float64Array.from(able, (can) => (can ? 1 / count : 0));
}

/** Before any member can speak: the mean of what is known, which is at most a day. */
function recentLevel(track: Track): number {
  const from = Math.max(0, track.length - track.perDay);
  let sum = 0;
  for (let index = from; index < track.length; index++) sum += at(track.levels, index);
  return sum / (track.length - from);
}

/** Levels back to counts. An interval of a wild series could otherwise end at infinity. */
function count(level: number): number {
  return Math.expm1(clamp(level, 0, LEVEL_MAX));
}
