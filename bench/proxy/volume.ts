/** Much data through few connections: rows of 1 MB, and COPY of a large table out and in. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, writeFile, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { withClient } from '../../src/app/demo/shop-data.js';
import type { Account, ServerAddress } from '../support/pgbench.js';
import { memoryOf, resetPeakMemory, cpuSecondsOf } from '../support/process-usage.js';
import { findProgram } from '../support/program.js';
import { spreadOf, type Spread } from '../support/statistics.js';
import { measureLoad, type Bench, type LoadFigures } from './load.js';
import type { Target } from './targets.js';

const ROW_BYTES = 1_000_000;
const ROW_CLIENTS = 4;
/** Of one row of the copied table as text, with its key and its line end. */
const COPY_ROW_BYTES = 1000;

/** One row of 1 MB a transaction, 4 clients; tps is MB/s. `superuserUrl`: the account's database. */
export async function measureRows(bench: Bench, superuserUrl: string): Promise<readonly LoadFigures[]> {
  await withClient(superuserUrl, async (client) => {
    await client.query('CREATE TABLE bench_rows (id int PRIMARY KEY, data text STORAGE EXTERNAL)');
    await client.query(`INSERT INTO bench_rows VALUES (1, repeat('0123456789', ${ROW_BYTES / 10}))`);
    await client.query(`GRANT SELECT ON bench_rows TO ${bench.account.user}`);
  });
  const script = join(bench.owner.folder, 'rows.sql');
  await writeFile(script, 'SELECT data FROM bench_rows WHERE id = 1;\n');
  const load = {
    script: ['-f', script],
    mode: 'extended',
    clients: ROW_CLIENTS,
    seconds: bench.settings.seconds,
  } as const;
  return await measureLoad(bench, bench.targets, load, 1);
}

export interface CopyFigures {
  readonly target: string;
  readonly direction: 'out' | 'in';
  readonly megabytes: number;
  readonly megabytesPerSecond: Spread;
  readonly cpuSeconds: number | null;
  /** The proxy's memory before, and the most it had meanwhile, of the worst round. */
  readonly memory: { readonly beforeBytes: number; readonly peakBytes: number } | null;
}

/** undefined where psql isn't found. */
export async function measureCopies(
  bench: Bench,
  superuserUrl: string,
): Promise<readonly CopyFigures[] | undefined> {
  const psql = findProgram('psql');
  if (psql === undefined) return undefined;
  const { settings, account, owner } = bench;
  const bytes = settings.copyMb * 1_000_000;
  await withClient(superuserUrl, async (client) => {
    await client.query(`CREATE UNLOGGED TABLE bench_copy AS
      SELECT lpad(n::text, 12) AS id, repeat(md5(n::text), 30) || repeat('x', ${COPY_ROW_BYTES - 12 - 960 - 2}) AS data
        FROM generate_series(1, ${bytes / COPY_ROW_BYTES}) AS n`);
    await client.query('CREATE UNLOGGED TABLE bench_copy_in (LIKE bench_copy)');
    await client.query(`GRANT ALL ON bench_copy, bench_copy_in TO ${account.user}`);
  });
  const file = join(owner.folder, 'copy.txt');
  const [direct] = bench.targets;
  if (direct === undefined) return [];
  const run = { psql, account };
  const out = await open(file, 'w');
  await owner.interruptible(copy(run, direct.address, 'COPY bench_copy TO STDOUT', { out }));
  await out.close();
  const all: CopyFigures[] = [];
  for (const direction of ['out', 'in'] as const) {
    const samples = bench.targets.map((target) => new CopySamples(target));
    for (let round = 0; round < settings.rounds; round++) {
      for (const into of samples) {
        if (direction === 'in')
          await withClient(superuserUrl, (client) => client.query('TRUNCATE bench_copy_in'));
        await owner.interruptible(
          into.measure(async () => {
            if (direction === 'out') {
              await copy(run, into.target.address, 'COPY bench_copy TO STDOUT', {});
              return;
            }
            const data = await open(file, 'r');
            await copy(run, into.target.address, 'COPY bench_copy_in FROM STDIN', { in: data });
            await data.close();
          }),
        );
      }
    }
    for (const of of samples) all.push(of.figures(direction, bytes));
  }
  return all;
}

class CopySamples {
  readonly target: Target;
  readonly #seconds: number[] = [];
  #cpuSeconds: number | null = 0;
  #memory: CopyFigures['memory'] = null;

  constructor(target: Target) {
    this.target = target;
  }

  async measure(work: () => Promise<void>): Promise<void> {
    const { pid } = this.target;
    if (pid !== null) resetPeakMemory(pid);
    const before = pid === null ? null : { memory: memoryOf(pid), cpu: cpuSecondsOf(pid) };
    const started = performance.now();
    await work();
    this.#seconds.push((performance.now() - started) / 1000);
    const after = pid === null ? null : { memory: memoryOf(pid), cpu: cpuSecondsOf(pid) };
    const spent = before?.cpu == null || after?.cpu == null ? null : after.cpu - before.cpu;
    this.#cpuSeconds = spent === null || this.#cpuSeconds === null ? null : this.#cpuSeconds + spent;
    if (before?.memory == null || after?.memory == null) return;
    const memory = { beforeBytes: before.memory.residentBytes, peakBytes: after.memory.peakBytes };
    const grown = (of: CopyFigures['memory']): number =>
      of === null ? -Infinity : of.peakBytes - of.beforeBytes;
    if (grown(memory) > grown(this.#memory)) this.#memory = memory;
  }

  figures(direction: CopyFigures['direction'], bytes: number): CopyFigures {
    return {
      target: this.target.name,
      direction,
      megabytes: bytes / 1e6,
      megabytesPerSecond: spreadOf(this.#seconds.map((seconds) => bytes / 1e6 / seconds)),
      cpuSeconds: this.#cpuSeconds === null ? null : this.#cpuSeconds / this.#seconds.length,
      memory: this.#memory,
    };
  }
}

/** Throws with the server's message where it fails. */
async function copy(
  { psql, account }: { readonly psql: string; readonly account: Account },
  address: ServerAddress,
  sql: string,
  files: { readonly in?: FileHandle; readonly out?: FileHandle },
): Promise<void> {
  const child = spawn(
    psql,
    [
      '-X',
      '-q',
      '-v',
      'ON_ERROR_STOP=1',
      '-h',
      address.host,
      '-p',
      String(address.port),
      '-U',
      account.user,
      '-d',
      account.database,
      '-c',
      sql,
    ],
    {
      env: { ...process.env, PGPASSWORD: account.password, PGSSLMODE: 'disable' },
      stdio: [files.in?.fd ?? 'ignore', files.out?.fd ?? 'ignore', 'pipe'],
    },
  );
  let said = '';
  child.stderr?.on('data', (chunk: Buffer) => (said += chunk.toString()));
  const [code] = (await once(child, 'close')) as [number | null];
  if (code !== 0) throw new Error(`${address.name}: ${sql} failed:\n  ${said.trim()}`);
}
