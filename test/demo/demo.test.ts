/**
 * The demo as a person runs it: a process of its own, built. What it leaves behind is looked for by its temporary
 * folder, which holds everything it starts.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readlinkSync, realpathSync } from 'node:fs';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { DemoJson } from '../../src/app/demo/demo-outcome.js';
import { until } from '../support/servers.js';

let folder: string;

beforeEach(async () => {
  folder = realpathSync(await mkdtemp(join(tmpdir(), 'demo-test-')));
  await chmod(folder, 0o711);
});

afterEach(async () => {
  await rm(folder, { recursive: true, force: true });
});

interface RunningDemo {
  readonly child: ChildProcess;
  readonly output: { out: string; err: string };
  readonly ended: Promise<number | null>;
}

function startDemo(...args: readonly string[]): RunningDemo {
  const child = spawn(process.execPath, ['dist/app/main.js', 'demo', ...args], {
    env: { ...process.env, TMPDIR: folder },
    stdio: ['ignore', 'pipe', 'pipe'],
    // As in a shell: the demo leads a group of its own.
    detached: true,
  });
  const output = { out: '', err: '' };
  child.stdout.on('data', (chunk: Buffer) => (output.out += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (output.err += chunk.toString()));
  const ended = once(child, 'close').then(([code]) => code as number | null);
  return { child, output, ended };
}

/** Pids of processes that work in the test's folder. */
function processesLeft(): readonly string[] {
  return readdirSync('/proc').filter((entry) => {
    if (!/^\d+$/.test(entry)) return false;
    try {
      return readlinkSync(`/proc/${entry}/cwd`).startsWith(folder);
    } catch {
      return false;
    }
  });
}

test('the demo cuts over, back and over again, and nothing is lost', async () => {
  const demo = startDemo('--json', '--rows', '20000', '--seconds', '1', '--pace', '300');
  const code = await demo.ended;
  const last = demo.output.out.trimEnd().split('\n').at(-1) ?? '';
  expect({ code, tail: demo.output.err.slice(-2000) }).toMatchObject({ code: 0 });
  const json = JSON.parse(last) as DemoJson;
  expect(json).toMatchObject({
    ok: true,
    statements: { failed: 0 },
    audit: { lost: 0, duplicated: 0, faults: [] },
    verify: { mismatches: 0 },
    sessions: { faults: 0 },
    notifications: { missing: 0, repeated: 0 },
    faults: [],
  });
  expect(json.switches.map(({ direction }) => direction)).toEqual(['forward', 'back', 'forward']);
  expect(json.switches.map(({ versions }) => Object.keys(versions)[0]?.split('.', 1)[0])).toEqual([
    '18',
    '14',
    '18',
  ]);
  expect(json.copy.rows).toBeGreaterThan(15_000);
  expect(json.audit.found).toBe(json.audit.acknowledged);
  expect(json.audit.acknowledged).toBeGreaterThan(100);
  expect(readdirSync(folder)).toEqual([]);
  expect(processesLeft()).toEqual([]);
});

test.each([
  ['SIGINT', 'Two real servers start'],
  ['SIGINT', 'A shop is loaded'],
  ['SIGTERM', 'Understudy starts'],
  ['SIGHUP', 'clients connect'],
  ['SIGINT', 'The shadow is built'],
  ['SIGINT', 'Cutover'],
] as const)('%s at “%s” leaves no process and no folder behind', async (signal, stage) => {
  const demo = startDemo('--rows', '5000', '--clients', '8', '--pace', '100');
  await until(() => demo.output.out.includes(stage) || demo.child.exitCode !== null, {
    timeoutMs: 120_000,
    what: stage,
  });
  demo.child.kill(signal);
  expect({ code: await demo.ended, ...demo.output }).toMatchObject({ code: 130 });
  expect(readdirSync(folder)).toEqual([]);
  expect(processesLeft()).toEqual([]);
});

test('a second Ctrl-C kills at once, and still nothing stays behind', async () => {
  const child = spawn(process.execPath, ['test/demo/hanging-owner.mjs'], {
    env: { ...process.env, TMPDIR: folder },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let out = '';
  child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()));
  const ended = once(child, 'close');
  await until(() => out.includes('hanging'), { what: 'the fixture' });
  // The first is answered by an orderly end, which hangs here. A second right behind it is npm's echo.
  child.kill('SIGINT');
  await until(() => out.includes('SIGINT'), { what: 'the first signal' });
  child.kill('SIGINT');
  expect(processesLeft().length).toBeGreaterThan(0);
  await until(() => {
    child.kill('SIGINT');
    return child.exitCode !== null;
  });
  expect(await ended).toEqual([130, null]);
  expect(out).not.toContain('closed');
  await until(() => processesLeft().length === 0);
  expect(readdirSync(folder)).toEqual([]);
});
