/** The aims the proxy is built for, held against what was measured. */
import { quantile } from '../support/statistics.js';
import type { Cell } from './load.js';
import type { IdleFigures } from './memory.js';
import type { CopyFigures } from './volume.js';

export interface AimResult {
  readonly aim: string;
  readonly wanted: string;
  /** Over all loads it is about: median, and the one furthest from the aim. */
  readonly measured: string;
  /** Loads in which it is met, of all; null where nothing of it was measured. */
  readonly met: { readonly count: number; readonly of: number } | null;
}

export interface Measured {
  readonly cells: readonly Cell[];
  readonly copies: readonly CopyFigures[];
  readonly idle: readonly IdleFigures[];
}

const COPY_GROWTH_BYTES_MAX = 64e6;
const IDLE_BYTES_MAX = 40_000;

export function compareWithAims({ cells, copies, idle }: Measured): readonly AimResult[] {
  const tps = (
    name: string,
    of: string,
    against: string,
    least: number,
    keep: (cell: Cell) => boolean,
  ): AimResult =>
    atLeast(
      name,
      least,
      ratios(cells.filter(keep), of, against, (cell) => cell.tps.median),
    );
  const session = [1, 8, 64].map((clients) =>
    tps(
      `session mode / PgBouncer session, tps, ${clients} ${clients === 1 ? 'client' : 'clients'}`,
      'understudy-session',
      'pgbouncer-session',
      1,
      (cell) => cell.clients === clients,
    ),
  );
  const pipelined = (against: string, least: number): AimResult =>
    tps(
      `pipelined / ${against}, tps, -S, 64 clients`,
      'understudy-pipelined',
      against,
      least,
      (cell) => cell.script === 'select' && cell.clients === 64,
    );
  return [
    ...session,
    ...['session', 'transaction', 'pipelined'].map((mode) =>
      tps(
        `capture on / off, tps, ${mode} mode`,
        `understudy-${mode}`,
        `understudy-${mode}-nocapture`,
        0.95,
        () => true,
      ),
    ),
    atMost("added p50 / PgBouncer's, 1 client", 1, addedLatencies(cells)),
    pipelined('direct', 1.8),
    pipelined('pgbouncer-transaction', 1.3),
    atLeast('COPY / direct, MB/s, session mode', 0.9, copyRatios(copies)),
    bytesAtMost(
      'COPY, memory grown by, session mode',
      COPY_GROWTH_BYTES_MAX,
      copies.flatMap(({ target, memory }) =>
        target === 'understudy-session' && memory !== null ? [memory.peakBytes - memory.beforeBytes] : [],
      ),
      1e6,
      'MB',
    ),
    bytesAtMost(
      'memory per idle client, session mode',
      IDLE_BYTES_MAX,
      idle.flatMap(({ target, bytesPerClient }) => (target === 'understudy-session' ? [bytesPerClient] : [])),
      1000,
      'kB',
    ),
  ];
}

/** Pairs the two targets' cells of the same load. */
function ratios(
  cells: readonly Cell[],
  of: string,
  against: string,
  pick: (cell: Cell) => number,
): readonly number[] {
  return cells.flatMap((cell) => {
    if (cell.target !== of) return [];
    const other = sameLoad(cells, cell, against);
    return other === undefined ? [] : [pick(cell) / pick(other)];
  });
}

function sameLoad(cells: readonly Cell[], cell: Cell, target: string): Cell | undefined {
  return cells.find(
    (other) =>
      other.target === target &&
      other.script === cell.script &&
      other.mode === cell.mode &&
      other.clients === cell.clients,
  );
}

/** What each adds to the direct way's median latency; where PgBouncer adds nothing measurable, nothing is compared. */
function addedLatencies(cells: readonly Cell[]): readonly number[] {
  return cells.flatMap((cell) => {
    if (cell.target !== 'understudy-session' || cell.clients !== 1) return [];
    const direct = sameLoad(cells, cell, 'direct');
    const peer = sameLoad(cells, cell, 'pgbouncer-session');
    if (direct === undefined || peer === undefined || peer.p50Ms.median <= direct.p50Ms.median) return [];
    return [(cell.p50Ms.median - direct.p50Ms.median) / (peer.p50Ms.median - direct.p50Ms.median)];
  });
}

function copyRatios(copies: readonly CopyFigures[]): readonly number[] {
  return copies.flatMap((figures) => {
    if (figures.target !== 'understudy-session') return [];
    const direct = copies.find(
      ({ target, direction }) => target === 'direct' && direction === figures.direction,
    );
    return direct === undefined ? [] : [figures.megabytesPerSecond.median / direct.megabytesPerSecond.median];
  });
}

function atLeast(aim: string, least: number, values: readonly number[]): AimResult {
  return result(
    aim,
    `≥ ${least.toFixed(2)}`,
    values,
    (value) => value >= least,
    (value) => value.toFixed(2),
    'least',
  );
}

function atMost(aim: string, most: number, values: readonly number[]): AimResult {
  return result(
    aim,
    `≤ ${most.toFixed(2)}`,
    values,
    (value) => value <= most,
    (value) => value.toFixed(2),
    'most',
  );
}

function bytesAtMost(
  aim: string,
  most: number,
  values: readonly number[],
  per: number,
  unit: string,
): AimResult {
  const show = (value: number): string => `${(value / per).toFixed(0)} ${unit}`;
  return result(aim, `≤ ${show(most)}`, values, (value) => value <= most, show, 'most');
}

function result(
  aim: string,
  wanted: string,
  values: readonly number[],
  isMet: (value: number) => boolean,
  show: (value: number) => string,
  worst: 'least' | 'most',
): AimResult {
  if (values.length === 0) return { aim, wanted, measured: 'not measured', met: null };
  const sorted = [...values].sort((a, b) => a - b);
  const furthest = (worst === 'least' ? sorted[0] : sorted.at(-1)) ?? Number.NaN;
  const measured =
    values.length === 1 ? show(furthest) : `${show(quantile(sorted, 0.5))} (${worst} ${show(furthest)})`;
  return { aim, wanted, measured, met: { count: values.filter(isMet).length, of: values.length } };
}
