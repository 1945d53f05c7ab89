/** The figures as tables. */
import { formatBytes, table } from '../../src/app/cli/format.js';
import type { AimResult } from './aims.js';
import type { Cell, LoadFigures } from './load.js';
import type { IdleFigures } from './memory.js';
import type { CopyFigures } from './volume.js';

const LOAD_HEADS = [
  'tps>',
  'min–max>',
  'of direct>',
  'p50 ms>',
  'added>',
  'p99 ms>',
  'CPU s/1000>',
  'server’s>',
] as const;

export function loadTable(cells: readonly Cell[]): readonly string[] {
  const rows = groupsOf(cells).flatMap((group) =>
    group.map((cell) => [
      cell.script,
      cell.mode,
      String(cell.clients),
      cell.target,
      ...loadCells(cell, group),
    ]),
  );
  return table(['script', 'mode', 'clients>', 'path', ...LOAD_HEADS], rows);
}

/** One line as soon as a load is measured through every target. */
export function progressLine(cells: readonly Cell[]): string {
  const [first] = cells;
  if (first === undefined) return '';
  const each = cells.map((cell) => `${cell.target} ${cell.tps.median.toFixed(0)}`);
  return `${first.script} ${first.mode} ${first.clients}:  ${each.join('  ')}`;
}

export function connectTable(
  figures: readonly (LoadFigures & { readonly clients: number })[],
): readonly string[] {
  const rows = figures.map((of) => {
    const direct = figures.find(({ target, clients }) => target === 'direct' && clients === of.clients);
    return [
      String(of.clients),
      of.target,
      of.tps.median.toFixed(0),
      ratio(of.tps.median, direct?.tps.median, of === direct),
      of.connectMs?.median.toFixed(3) ?? '',
      cpu(of),
    ];
  });
  return table(['clients>', 'path', 'connections/s>', 'of direct>', 'to connect, ms>', 'CPU s/1000>'], rows);
}

export function rowsTable(figures: readonly LoadFigures[]): readonly string[] {
  const rows = figures.map((of) => [of.target, ...loadCells(of, figures)]);
  return table(['path', 'MB/s>', ...LOAD_HEADS.slice(1)], rows);
}

export function copyTable(figures: readonly CopyFigures[]): readonly string[] {
  const rows = figures.map((of) => {
    const direct = figures.find(({ target, direction }) => target === 'direct' && direction === of.direction);
    const { median, min, max } = of.megabytesPerSecond;
    return [
      of.direction,
      of.target,
      median.toFixed(0),
      `${min.toFixed(0)}–${max.toFixed(0)}`,
      ratio(median, direct?.megabytesPerSecond.median, of === direct),
      of.cpuSeconds?.toFixed(2) ?? '',
      of.memory === null ? '' : formatBytes(of.memory.beforeBytes),
      of.memory === null ? '' : formatBytes(of.memory.peakBytes),
    ];
  });
  return table(
    ['COPY', 'path', 'MB/s>', 'min–max>', 'of direct>', 'CPU s>', 'memory before>', 'peak>'],
    rows,
  );
}

export function idleTable(figures: readonly IdleFigures[]): readonly string[] {
  const rows = figures.map(({ target, clients, bytesPerClient }) => [
    target,
    String(clients),
    formatBytes(Math.max(0, bytesPerClient)),
  ]);
  return table(['path', 'idle clients>', 'memory each>'], rows);
}

export function peakTable(peaks: Readonly<Record<string, number>>): readonly string[] {
  return table(
    ['path', 'peak memory>'],
    Object.entries(peaks).map(([target, bytes]) => [target, formatBytes(bytes)]),
  );
}

export function aimsTable(aims: readonly AimResult[]): readonly string[] {
  const rows = aims.map(({ aim, wanted, measured, met }) => [aim, wanted, measured, verdict(met)]);
  return table(['aim', 'wanted', 'median (furthest off)', ''], rows);
}

function verdict(met: AimResult['met']): string {
  if (met === null) return '';
  if (met.of === 1) return met.count === 1 ? 'met' : 'missed';
  if (met.count === met.of) return `met in all ${met.of}`;
  return met.count === 0 ? `missed in all ${met.of}` : `met in ${met.count} of ${met.of}`;
}

function groupsOf(cells: readonly Cell[]): readonly (readonly Cell[])[] {
  const groups = new Map<string, Cell[]>();
  for (const cell of cells) {
    const load = `${cell.script} ${cell.mode} ${cell.clients}`;
    groups.set(load, [...(groups.get(load) ?? []), cell]);
  }
  return [...groups.values()];
}

function loadCells(of: LoadFigures, group: readonly LoadFigures[]): readonly string[] {
  const direct = group.find(({ target }) => target === 'direct');
  const added = of.p50Ms.median - (direct?.p50Ms.median ?? Number.NaN);
  return [
    of.tps.median.toFixed(0),
    `${of.tps.min.toFixed(0)}–${of.tps.max.toFixed(0)}`,
    ratio(of.tps.median, direct?.tps.median, of === direct),
    of.p50Ms.median.toFixed(3),
    of === direct ? '' : `${added >= 0 ? '+' : ''}${(added * 1000).toFixed(0)} µs`,
    of.p99Ms.median.toFixed(3),
    cpu(of),
    of.serverCpuSecondsPerThousand?.toFixed(3) ?? '',
  ];
}

function ratio(value: number, direct: number | undefined, itself: boolean): string {
  return direct === undefined || itself ? '' : `${((value / direct) * 100).toFixed(0)} %`;
}

function cpu({ cpuSecondsPerThousand }: LoadFigures): string {
  return cpuSecondsPerThousand === null ? '' : cpuSecondsPerThousand.toFixed(3);
}
