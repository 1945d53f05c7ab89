/**
 * What the proxy costs: pgbench straight to a server, through Understudy, and through PgBouncer in session mode where
 * it is installed. Rounds are interleaved (direct, Understudy, PgBouncer, direct, …), so that a machine that grows
 * slower or faster meanwhile does so for all of them.
 */
import { parseArgs } from 'node:util';
import { fileURLToPath } from 'node:url';
import { table } from '../src/app/cli/format.js';
import { EmbeddedServer, type ServerVersion } from '../src/app/demo/embedded-server.js';
import { RunOwner } from '../src/app/demo/run-owner.js';
import { withClient } from '../src/app/demo/shop-data.js';
import { UnderstudyProcess } from '../src/app/demo/understudy-process.js';
import { describeMachine, machineLines } from './support/machine.js';
import { Output } from './support/output.js';
import {
  MODES,
  Pgbench,
  SCRIPTS,
  type Account,
  type Mode,
  type Script,
  type ServerAddress,
} from './support/pgbench.js';
import { startPgbouncer } from './support/pgbouncer.js';
import { spreadOf, type Spread } from './support/statistics.js';

const ACCOUNT: Account = { user: 'bench', password: 'bench', database: 'bench' };
const PROGRAM = fileURLToPath(new URL('../../dist/app/main.js', import.meta.url));

interface Settings {
  readonly server: ServerVersion;
  readonly scale: number;
  readonly seconds: number;
  readonly rounds: number;
  readonly scripts: readonly Script[];
  readonly modes: readonly Mode[];
  readonly clients: readonly number[];
}

interface Cell {
  readonly script: Script;
  readonly mode: Mode;
  readonly clients: number;
  readonly path: string;
  readonly tps: Spread;
  readonly latencyMs: Spread;
}

function readSettings(): { settings: Settings; json: boolean } {
  const { values } = parseArgs({
    options: {
      seconds: { type: 'string' },
      rounds: { type: 'string' },
      scripts: { type: 'string' },
      modes: { type: 'string' },
      clients: { type: 'string' },
      scale: { type: 'string' },
      server: { type: 'string' },
      quick: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
    },
  });
  const { quick } = values;
  const list = (text: string | undefined, all: readonly string[]): readonly string[] =>
    text === undefined ? all : all.filter((item) => text.split(',').includes(item));
  return {
    json: values.json,
    settings: {
      server: values.server === '14' ? 14 : 18,
      scale: Number(values.scale ?? (quick ? 1 : 10)),
      seconds: Number(values.seconds ?? (quick ? 1 : 4)),
      rounds: Number(values.rounds ?? (quick ? 1 : 5)),
      scripts: list(values.scripts, Object.keys(SCRIPTS)) as readonly Script[],
      modes: list(values.modes, quick ? ['simple', 'prepared'] : MODES) as readonly Mode[],
      clients: (values.clients?.split(',') ?? ['1', '8', '64']).map(Number),
    },
  };
}

async function prepareServer(owner: RunOwner, settings: Settings): Promise<EmbeddedServer> {
  const server = await owner.acquire(
    'PostgreSQL',
    (signal) =>
      EmbeddedServer.create({ version: settings.server, parent: owner.folder, ownGroup: true, signal }),
    (created) => created[Symbol.asyncDispose](),
  );
  await withClient(server.url('postgres'), async (client) => {
    await client.query(`CREATE ROLE ${ACCOUNT.user} LOGIN PASSWORD '${ACCOUNT.password}'`);
    await client.query(`CREATE DATABASE ${ACCOUNT.database} OWNER ${ACCOUNT.user}`);
  });
  return server;
}

/** Every path to the one server: direct first, it is what the others are held against. */
async function openPaths(
  owner: RunOwner,
  server: EmbeddedServer,
): Promise<{ paths: readonly ServerAddress[]; peer: string }> {
  const direct: ServerAddress = { name: 'direct', host: server.host, port: server.port };
  const understudy = await owner.acquire(
    'Understudy',
    (signal) =>
      UnderstudyProcess.start({
        folder: owner.folder,
        sourceUrl: server.url(ACCOUNT.database),
        destinationUrl: server.url('postgres'),
        config: { shadow: { enabled: false }, log: { level: 'warn' } },
        program: PROGRAM,
        signal,
      }),
    (started) => started.stop(),
  );
  const peer = await owner.acquire(
    'PgBouncer',
    () => startPgbouncer(direct, ACCOUNT),
    async (started) => started?.[Symbol.asyncDispose](),
  );
  const proxied: ServerAddress = { name: 'understudy', host: '127.0.0.1', port: understudy.port };
  return {
    paths: [direct, proxied, ...(peer === undefined ? [] : [peer.address])],
    peer: peer?.version ?? 'PgBouncer is not on PATH, left out',
  };
}

async function measure(
  pgbench: Pgbench,
  paths: readonly ServerAddress[],
  settings: Settings,
  owner: RunOwner,
  onCell: (cells: readonly Cell[]) => void,
): Promise<readonly Cell[]> {
  const all: Cell[] = [];
  for (const script of settings.scripts) {
    for (const mode of settings.modes) {
      for (const clients of settings.clients) {
        const runs = new Map(
          paths.map((path) => [path.name, { tps: [] as number[], latencyMs: [] as number[] }]),
        );
        for (let round = 0; round < settings.rounds; round++) {
          for (const path of paths) {
            const load = { script, mode, clients, seconds: settings.seconds };
            const run = await owner.interruptible(pgbench.measure(path, ACCOUNT, load));
            if (run.failed > 0) throw new Error(`${path.name}: ${run.failed} transactions failed`);
            runs.get(path.name)?.tps.push(run.tps);
            runs.get(path.name)?.latencyMs.push(run.latencyMs);
          }
        }
        const cells = [...runs].map(([path, { tps, latencyMs }]) => ({
          script,
          mode,
          clients,
          path,
          tps: spreadOf(tps),
          latencyMs: spreadOf(latencyMs),
        }));
        all.push(...cells);
        onCell(cells);
      }
    }
  }
  return all;
}

function rowsOf(cells: readonly Cell[]): readonly (readonly string[])[] {
  const direct = cells[0];
  return cells.map((cell) => {
    const added = cell.latencyMs.median - (direct?.latencyMs.median ?? 0);
    return [
      cell.script,
      cell.mode,
      String(cell.clients),
      cell.path,
      cell.tps.median.toFixed(0),
      `${cell.tps.min.toFixed(0)}–${cell.tps.max.toFixed(0)}`,
      cell === direct ? '' : `${((cell.tps.median / (direct?.tps.median ?? 1)) * 100).toFixed(0)} %`,
      cell.latencyMs.median.toFixed(3),
      cell === direct ? '' : `${added >= 0 ? '+' : ''}${(added * 1000).toFixed(0)} µs`,
    ];
  });
}

async function main(): Promise<void> {
  const { settings, json } = readSettings();
  const output = new Output(json);
  const pgbench = new Pgbench();
  const machine = describeMachine();
  const owner = new RunOwner('understudy-bench-', (signal) => output.line(`${signal}: stopping`));
  try {
    const server = await prepareServer(owner, settings);
    await pgbench.initialise(
      { name: 'direct', host: server.host, port: server.port },
      ACCOUNT,
      settings.scale,
    );
    const { paths, peer } = await openPaths(owner, server);
    for (const line of machineLines(machine)) output.line(line);
    output.line(
      `            PostgreSQL ${settings.server} (embedded, fsync on), ${pgbench.version}, ${peer}`,
    );
    output.line(
      `settings    scale ${settings.scale}, ${settings.rounds} interleaved rounds of ${settings.seconds} s each, medians; ` +
        'everything shares the machine\n',
    );
    const heads = [
      'script',
      'mode',
      'clients>',
      'path',
      'tps>',
      'min–max>',
      'of direct>',
      'latency ms>',
      'added>',
    ];
    const cells = await measure(pgbench, paths, settings, owner, (group) =>
      output.line(
        rowsOf(group)
          .map((row) => row.join('  '))
          .join('\n'),
      ),
    );
    output.line();
    const groups = cells
      .filter((cell) => cell.path === 'direct')
      .map((direct) =>
        cells.filter(
          (cell) =>
            cell.script === direct.script && cell.mode === direct.mode && cell.clients === direct.clients,
        ),
      );
    for (const line of table(heads, groups.flatMap(rowsOf))) output.line(line);
    await output.result('proxy', { machine, pgbench: pgbench.version, peer, settings, cells });
  } finally {
    await owner.close();
  }
}

await main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
});
