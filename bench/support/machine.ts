/** What the figures were measured on: without it they mean nothing. */
import { execFileSync } from 'node:child_process';
import { cpus, loadavg, release, totalmem, type as systemType } from 'node:os';
import { readFileSync } from 'node:fs';

export interface Machine {
  readonly cpu: string;
  readonly cores: number;
  readonly memoryGb: number;
  readonly system: string;
  readonly node: string;
  /** Load average of the last minute at the start: a busy machine measures something else. */
  readonly loadBefore: number;
  readonly understudy: string;
  /** The commit measured, with `+` where files differ from it; `unknown` outside a checkout. */
  readonly commit: string;
}

export function describeMachine(): Machine {
  const manifest = JSON.parse(readFileSync('package.json', 'utf8')) as { readonly version: string };
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: cpus().length,
    memoryGb: Math.round(totalmem() / 1e9),
    system: `${systemType()} ${release()}`,
    node: process.version,
    loadBefore: loadavg()[0] ?? 0,
    understudy: manifest.version,
    commit: commitOf(),
  };
}

function commitOf(): string {
  try {
    const git = (...args: string[]): string =>
      execFileSync('git', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
    const changed = git('status', '--porcelain', '--untracked-files=no') === '' ? '' : '+';
    return `${git('rev-parse', '--short', 'HEAD')}${changed}`;
  } catch {
    return 'unknown';
  }
}

export function machineLines(machine: Machine): readonly string[] {
  return [
    `machine     ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGb} GB; ${machine.system}; load ${machine.loadBefore.toFixed(2)}`,
    `versions    Understudy ${machine.understudy} (${machine.commit}), Node ${machine.node}`,
  ];
}
