/** The built command line, as a child process. */
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { freePort } from '../../src/app/demo/embedded-server.js';
import type { Finding } from '../../src/core/ports.js';
import { FAST_SETTINGS } from '../support/global-setup.js';
import { sharedEndpoint, ownServer } from '../support/servers.js';

const PROGRAM = fileURLToPath(new URL('../../dist/app/main.js', import.meta.url));

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'understudy-cli-'));
});
afterAll(() => rm(folder, { recursive: true }));

interface Ended {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
  /** The last line of standard output. */
  readonly json: () => unknown;
}

function cli(args: readonly string[], environment: Record<string, string> = {}): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [PROGRAM, ...args], {
      cwd: folder,
      env: { PATH: process.env['PATH'], HOME: folder, ...environment },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let out = '';
    let err = '';
    child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (err += chunk.toString()));
    child.on('error', reject);
    child.on('close', (code) =>
      resolve({ code, out, err, json: () => JSON.parse(out.trim().split('\n').at(-1) ?? '') as unknown }),
    );
  });
}

test('help names every verb and the exit codes; each verb has its own', async () => {
  const { code, out } = await cli(['--help']);
  expect(code).toBe(0);
  for (const verb of [
    'init',
    'check',
    'run',
    'status',
    'verify',
    'cutover',
    'rollback',
    'finalize',
    'abort',
    'demo',
  ])
    expect(out).toContain(`understudy ${verb}`);
  expect(out).toContain('Exit codes:');
  const cutover = await cli(['cutover', '--help']);
  expect(cutover.out).toContain('--dry-run');
  expect(cutover.code).toBe(0);
});

test('a slip of the pen is answered with what was probably meant', async () => {
  const verb = await cli(['statsu']);
  expect(verb).toMatchObject({ code: 2, out: '' });
  expect(verb.err).toContain('Did you mean status?');
  expect((await cli(['status', '--wach'])).code).toBe(2);
  const none = await cli([]);
  expect(none.code).toBe(2);
  expect(none.err).toContain('--help');
  const json = await cli(['status', '--wach', '--json']);
  expect(json.json()).toMatchObject({ error: { code: 'config-invalid' } });
});

test('init writes a configuration once, readable by its owner alone', async () => {
  const file = join(folder, 'written.yaml');
  const first = await cli(['init', '--config', file, '--json']);
  expect(first).toMatchObject({ code: 0 });
  expect(first.json()).toEqual({ file });
  expect((await stat(file)).mode & 0o777).toBe(0o600);
  const again = await cli(['init', '--config', file]);
  expect(again.code).toBe(2);
  expect(again.err).toContain('--force');
  await writeFile(file, 'x');
  expect((await cli(['init', '--config', file, '--force'])).code).toBe(0);
  expect(await readFile(file, 'utf8')).toContain('source:');
});

test('a bad configuration is named by line, without a stack, also as JSON', async () => {
  await writeFile(join(folder, 'bad.yaml'), 'cutover:\n  drainTimeoutMs: fast\n');
  const bad = await cli(['check', '--config', 'bad.yaml', '--json']);
  expect(bad.code).toBe(2);
  expect(bad.err).toContain('bad.yaml:2:19 cutover.drainTimeoutMs: expected a whole number');
  expect(bad.err).not.toContain('    at ');
  expect(bad.json()).toMatchObject({ error: { code: 'config-invalid' } });
});

test('what needs no configuration leaves one out that was only begun', async () => {
  const log = join(folder, 'pg.log');
  await writeFile(
    log,
    '2026-03-02 10:00:00.000 UTC [1] app@shop LOG:  duration: 1.5 ms  statement: SELECT 1 FROM orders\n',
  );
  await writeFile(join(folder, 'understudy.yaml'), 'source: { url: "postgres://${NOT_SET}@h/d" }\n');
  const imported = await cli(['import-log', log, '--out', 'usage.jsonl']);
  expect(imported).toMatchObject({ code: 0 });
  expect(imported.out).toContain('understudy.yaml is left out');
  expect(await cli(['plan', '--series', 'usage.jsonl'])).toMatchObject({ code: 0 });
  // Asked for by name, or needed, it must be right.
  expect((await cli(['plan', '--series', 'usage.jsonl', '--config', 'understudy.yaml'])).code).toBe(2);
  expect((await cli(['import-log', log])).code).toBe(2);
  await rm(join(folder, 'understudy.yaml'));
});

test('no process: status and cutover say how to start one', async () => {
  const port = await freePort();
  for (const verb of ['status', 'cutover']) {
    const ended = await cli([verb, '--admin-url', `http://127.0.0.1:${port}`, '--json']);
    expect(ended.code).toBe(2);
    expect(ended.err).toContain('understudy run');
    expect(ended.json()).toMatchObject({ error: { code: 'admin-unreachable' } });
  }
});

test('finalize without a terminal wants --yes', async () => {
  const ended = await cli(['finalize']);
  expect(ended.code).toBe(2);
  expect(ended.err).toContain('--yes');
});

function urlOf(
  server: { host: string; port: number; user: string; password?: string },
  database: string,
): string {
  return `postgres://${server.user}:${server.password ?? ''}@${server.host}:${server.port}/${database}`;
}

test('check: a source that can’t be reached is an error of its own, the other side is still checked', async () => {
  const port = await freePort();
  const destination = sharedEndpoint('destination', 'postgres');
  const ended = await cli(['check', '--json'], {
    UNDERSTUDY_SOURCE_URL: `postgres://nobody:geheim@127.0.0.1:${port}/none`,
    UNDERSTUDY_DESTINATION_URL: urlOf(destination, 'postgres'),
  });
  expect(ended.code).toBe(2);
  expect(ended.out + ended.err).not.toContain('geheim');
  expect(ended.json()).toMatchObject({ ok: false, errors: [{ code: 'source-unreachable' }] });
});

test('check: a source without logical decoding is followed in another way, or is a blocker where it may not be', async () => {
  const server = await ownServer({
    version: 14,
    settings: { ...FAST_SETTINGS, wal_level: 'replica' },
  });
  try {
    for (const method of ['log', 'auto'] as const) {
      const ended = await cli(['check', '--json'], {
        UNDERSTUDY_SOURCE_URL: server.url('postgres'),
        UNDERSTUDY_DESTINATION_URL: urlOf(sharedEndpoint('destination', 'postgres'), 'postgres'),
        UNDERSTUDY_SHADOW_METHOD: method,
      });
      const { findings } = ended.json() as { findings: readonly Finding[] };
      const finding = findings.find(({ check, side }) => check === 'wal-level' && side === 'source');
      expect(finding).toMatchObject({ severity: method === 'log' ? 'blocker' : 'info' });
      expect(finding?.advice).toContain('wal_level');
      expect(ended.err).toContain(finding?.advice);
      expect(ended.code).toBe(method === 'log' ? 1 : 0);
    }
  } finally {
    await server[Symbol.asyncDispose]();
  }
});
