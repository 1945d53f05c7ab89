/** What is measured of either engine, and how it is printed. */
import { table } from '../../src/app/cli/format.js';
import type { Output } from '../support/output.js';
import type { ClientFigures } from './load.js';

export type Engine = 'built-in' | 'understudy';

export interface CopyFigures extends ServerCpu, OwnFigures {
  readonly rows: number;
  /** Until every row was there. */
  readonly copySeconds: number;
  /** Until the indexes were there too. */
  readonly seconds: number;
}

export interface ServerCpu {
  readonly sourceCpuSeconds: number;
  readonly destinationCpuSeconds: number;
}
/** Of Understudy's whole process, its start included. */
export interface OwnFigures {
  readonly understudyCpuSeconds: number | null;
  readonly understudyPeakBytes: number | null;
}

export interface CatchUpFigures extends ServerCpu, OwnFigures {
  readonly changes: number;
  /** From the walsender's start. */
  readonly seconds: number;
}

export interface LagFigures {
  readonly samples: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
  readonly sourceCpuShare: number;
  readonly client: ClientFigures;
  readonly understudyCpuShare: number | null;
  readonly understudyPeakBytes: number | null;
}

function print(output: Output, head: readonly string[], rows: readonly (readonly string[])[]): void {
  output.line();
  for (const line of table(
    [...head],
    rows.map((row) => [...row]),
  ))
    output.line(line);
}

export function printCopy(output: Output, copy: Partial<Record<Engine, CopyFigures>>): void {
  print(
    output,
    ['first copy', 'rows>', 'rows there>', 'rows/s>', 'with indexes>', 'rows/s>', ...COST_HEAD],
    Object.entries(copy).map(([engine, { rows, copySeconds, seconds, ...cost }]) => [
      engine,
      String(rows),
      `${copySeconds.toFixed(2)} s`,
      (rows / copySeconds).toFixed(0),
      `${seconds.toFixed(2)} s`,
      (rows / seconds).toFixed(0),
      ...costs(cost),
    ]),
  );
  ratio(output, 'copy with indexes', copy['built-in']?.seconds, copy.understudy?.seconds);
}

export function printCatchUp(output: Output, catchUp: Partial<Record<Engine, CatchUpFigures>>): void {
  if (Object.keys(catchUp).length === 0) return;
  print(
    output,
    ['catch-up', 'changes>', 'time>', 'changes/s>', ...COST_HEAD],
    Object.entries(catchUp).map(([engine, figures]) => [
      engine,
      String(figures.changes),
      `${figures.seconds.toFixed(2)} s`,
      (figures.changes / figures.seconds).toFixed(0),
      ...costs(figures),
    ]),
  );
  ratio(output, 'catch-up', catchUp['built-in']?.seconds, catchUp.understudy?.seconds);
}

export function printLag(
  output: Output,
  lag: Readonly<Record<string, Partial<Record<Engine, LagFigures>>>>,
): void {
  print(
    output,
    ['lag', 'tps>', 'p50>', 'p99>', 'max>', 'client p99>', 'source CPU>', 'own CPU>', 'own memory>'],
    Object.entries(lag).flatMap(([tps, engines]) =>
      Object.entries(engines).map(([engine, figures]) => [
        engine,
        `${figures.client.tps.toFixed(0)} of ${tps}`,
        `${figures.p50Ms.toFixed(1)} ms`,
        `${figures.p99Ms.toFixed(1)} ms`,
        `${figures.maxMs.toFixed(1)} ms`,
        `${figures.client.p99Ms.toFixed(1)} ms`,
        `${(figures.sourceCpuShare * 100).toFixed(0)} %`,
        figures.understudyCpuShare === null ? '' : `${(figures.understudyCpuShare * 100).toFixed(0)} %`,
        megabytes(figures.understudyPeakBytes),
      ]),
    ),
  );
}

export function printClients(output: Output, clients: Readonly<Record<string, ClientFigures>>): void {
  if (Object.keys(clients).length === 0) return;
  print(
    output,
    ['what the application sees', 'tps>', 'p50>', 'p99>'],
    Object.entries(clients).map(([name, figures]) => [
      name,
      figures.tps.toFixed(0),
      `${figures.p50Ms.toFixed(1)} ms`,
      `${figures.p99Ms.toFixed(1)} ms`,
    ]),
  );
}

function ratio(output: Output, what: string, builtin: number | undefined, ours: number | undefined): void {
  if (builtin === undefined || ours === undefined) return;
  output.line(`${what}: ${(builtin / ours).toFixed(2)} × the built-in replication`);
}

/** Columns of {@link costs}. */
const COST_HEAD = ['source CPU>', 'destination CPU>', 'own CPU>', 'own memory>'];

function costs(figures: ServerCpu & OwnFigures): readonly string[] {
  return [
    `${figures.sourceCpuSeconds.toFixed(1)} s`,
    `${figures.destinationCpuSeconds.toFixed(1)} s`,
    figures.understudyCpuSeconds === null ? '' : `${figures.understudyCpuSeconds.toFixed(1)} s`,
    megabytes(figures.understudyPeakBytes),
  ];
}

function megabytes(bytes: number | null): string {
  return bytes === null ? '' : `${(bytes / 1024 ** 2).toFixed(0)} MB`;
}
