/** What is measured: the flags of `npm run bench:proxy`. */
import { parseArgs } from 'node:util';
import type { ServerVersion } from '../../src/app/demo/embedded-server.js';
import { MODES, type Mode } from '../support/pgbench.js';

/** pgbench's arguments, and the statements of one transaction. */
export const SCRIPTS = {
  select: { args: ['-S'], statements: 1 },
  tpcb: { args: [], statements: 7 },
} as const;
export type Script = keyof typeof SCRIPTS;

export const PARTS = ['tps', 'connect', 'rows', 'copy', 'memory'] as const;
export type Part = (typeof PARTS)[number];

export interface Settings {
  readonly server: ServerVersion;
  readonly scale: number;
  readonly seconds: number;
  readonly rounds: number;
  readonly scripts: readonly Script[];
  readonly modes: readonly Mode[];
  readonly clients: readonly number[];
  /** Names, or beginnings of names up to a dash; all where empty. */
  readonly targets: readonly string[];
  readonly parts: readonly Part[];
  /** Megabytes of one COPY. */
  readonly copyMb: number;
  /** Connections opened to weigh an idle client. */
  readonly idleClients: number;
  readonly quick: boolean;
}

export interface Flags {
  readonly settings: Settings;
  readonly json: boolean;
  /** File for the chart. */
  readonly svg: string | undefined;
}

/** Throws on a flag or a value that isn't known: a figure left out by a slip of the pen must not go unnoticed. */
export function readFlags(args?: readonly string[]): Flags {
  const { values } = parseArgs({
    ...(args === undefined ? {} : { args: [...args] }),
    options: {
      seconds: { type: 'string' },
      rounds: { type: 'string' },
      scripts: { type: 'string' },
      modes: { type: 'string' },
      clients: { type: 'string' },
      targets: { type: 'string' },
      only: { type: 'string' },
      scale: { type: 'string' },
      server: { type: 'string' },
      'copy-mb': { type: 'string' },
      'idle-clients': { type: 'string' },
      svg: { type: 'string' },
      quick: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
    },
  });
  const { quick } = values;
  const server = wholeOf('server', values.server ?? '18');
  if (server !== 14 && server !== 18) throw new Error('--server takes 14 or 18');
  return {
    json: values.json,
    svg: values.svg,
    settings: {
      server,
      scale: wholeOf('scale', values.scale ?? (quick ? '1' : '10')),
      seconds: wholeOf('seconds', values.seconds ?? '1'),
      rounds: wholeOf('rounds', values.rounds ?? (quick ? '1' : '3')),
      scripts: listOf(
        'scripts',
        values.scripts,
        Object.keys(SCRIPTS) as Script[],
        quick ? ['select'] : undefined,
      ),
      modes: listOf('modes', values.modes, MODES, quick ? ['extended'] : undefined),
      clients: (values.clients ?? (quick ? '1,8,64' : '1,8,64,200'))
        .split(',')
        .map((text) => wholeOf('clients', text)),
      targets: values.targets?.split(',') ?? [],
      parts: listOf('only', values.only, PARTS),
      copyMb: wholeOf('copy-mb', values['copy-mb'] ?? (quick ? '100' : '1000')),
      idleClients: wholeOf('idle-clients', values['idle-clients'] ?? (quick ? '200' : '1000')),
      quick,
    },
  };
}

function listOf<T extends string>(
  flag: string,
  text: string | undefined,
  all: readonly T[],
  fallback: readonly T[] = all,
): readonly T[] {
  if (text === undefined) return fallback;
  return text.split(',').map((name) => {
    const known = all.find((candidate) => candidate === name);
    if (known === undefined) throw new Error(`--${flag} takes ${all.join(', ')}; not ${name}`);
    return known;
  });
}

function wholeOf(flag: string, text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1)
    throw new Error(`--${flag} takes whole numbers from 1; not ${text}`);
  return value;
}
