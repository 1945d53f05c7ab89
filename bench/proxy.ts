/**
 * What the proxy costs, beside what others cost: one PostgreSQL, straight and through HAProxy, PgBouncer and Understudy
 * in each mode. Rounds are interleaved (direct, HAProxy, PgBouncer, Understudy, direct, …), so that a machine that grows
 * slower or faster meanwhile does so for all of them. A failed transaction ends the bench.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { EmbeddedServer } from '../src/app/demo/embedded-server.js';
import { RunOwner } from '../src/app/demo/run-owner.js';
import { withClient } from '../src/app/demo/shop-data.js';
import { compareWithAims } from './proxy/aims.js';
import { chartOf } from './proxy/chart.js';
import { measureConnects, measureLoads, warmUp, type Bench } from './proxy/load.js';
import { measureIdleClients } from './proxy/memory.js';
import {
  aimsTable,
  connectTable,
  copyTable,
  idleTable,
  loadTable,
  peakTable,
  progressLine,
  rowsTable,
} from './proxy/report.js';
import { readFlags, type Flags, type Part, type Settings } from './proxy/settings.js';
import { openTargets, type Target } from './proxy/targets.js';
import { measureCopies, measureRows } from './proxy/volume.js';
import { describeMachine, machineLines } from './support/machine.js';
import { Output } from './support/output.js';
import { Pgbench, type Account } from './support/pgbench.js';
import { memoryOf } from './support/process-usage.js';

const ACCOUNT: Account = { user: 'bench', password: 'bench', database: 'bench' };
/** Session mode and PgBouncer's take a server connection for each of the idle clients; a few more are our own. */
const SERVER_CONNECTIONS = 1400;

async function main(): Promise<void> {
  const flags = readFlags();
  const output = new Output(flags.json);
  const owner = new RunOwner('understudy-bench-', (signal) => output.line(`${signal}: stopping`));
  try {
    await run(flags, output, owner);
  } finally {
    await owner.close();
  }
}

async function run({ settings, svg }: Flags, output: Output, owner: RunOwner): Promise<void> {
  const pgbench = new Pgbench(owner.folder);
  const machine = describeMachine();
  const { server, verifier } = await prepareServer(owner, settings);
  const direct = { name: 'direct', host: server.host, port: server.port };
  await pgbench.initialise(direct, ACCOUNT, settings.scale);
  const wanted = (name: string): boolean =>
    settings.targets.length === 0 ||
    settings.targets.some((asked) => name === asked || name.startsWith(`${asked}-`));
  const { targets, notes } = await openTargets({ owner, server, account: ACCOUNT, verifier, wanted });
  for (const line of machineLines(machine)) output.line(line);
  output.line(`            PostgreSQL ${settings.server} (embedded, fsync on), ${pgbench.version}`);
  for (const note of notes) output.line(`            ${note}`);
  output.line(
    `settings    scale ${settings.scale}, ${settings.rounds} interleaved rounds of ${settings.seconds} s, medians; ` +
      'SCRAM on every leg, no TLS; clients, proxies and server share the machine\n',
  );
  const bench: Bench = { pgbench, account: ACCOUNT, settings, owner, targets, serverPid: server.pid ?? null };
  const figures = await measureAll(bench, server.url(ACCOUNT.database), output);
  const aims = compareWithAims(figures);
  show(output, 'Aims', aimsTable(aims));
  const subtitle = `${machine.cpu}, ${machine.cores} cores; PostgreSQL ${settings.server}; commit ${machine.commit}`;
  if (svg !== undefined) {
    const mode = settings.modes.includes('extended') ? 'extended' : settings.modes[0];
    await mkdir(dirname(svg), { recursive: true });
    await writeFile(svg, chartOf(figures.cells, mode ?? 'extended', subtitle));
    output.line(`chart: ${svg}`);
  }
  await output.result('proxy', { machine, pgbench: pgbench.version, notes, settings, ...figures, aims });
}

async function prepareServer(
  owner: RunOwner,
  settings: Settings,
): Promise<{ readonly server: EmbeddedServer; readonly verifier: string }> {
  const server = await owner.acquire(
    'PostgreSQL',
    (signal) =>
      EmbeddedServer.create({
        version: settings.server,
        parent: owner.folder,
        ownGroup: true,
        settings: { max_connections: String(SERVER_CONNECTIONS) },
        signal,
      }),
    (created) => created[Symbol.asyncDispose](),
  );
  const verifier = await withClient(server.url('postgres'), async (client) => {
    await client.query(`CREATE ROLE ${ACCOUNT.user} LOGIN PASSWORD '${ACCOUNT.password}'`);
    await client.query(`CREATE DATABASE ${ACCOUNT.database} OWNER ${ACCOUNT.user}`);
    const { rows } = await client.query<{ readonly rolpassword: string }>(
      'SELECT rolpassword FROM pg_authid WHERE rolname = $1',
      [ACCOUNT.user],
    );
    return rows[0]?.rolpassword ?? '';
  });
  return { server, verifier };
}

async function measureAll(bench: Bench, superuserUrl: string, output: Output) {
  const asked = (part: Part): boolean => bench.settings.parts.includes(part);
  // What capture costs is a matter of statements; beside them it would only take time.
  const fewer: Bench = {
    ...bench,
    targets: bench.targets.filter(({ name }) => !name.endsWith('-nocapture')),
  };
  if (asked('tps') || asked('connect') || asked('rows')) await warmUp(asked('tps') ? bench : fewer);
  const cells = asked('tps') ? await measureLoads(bench, (group) => output.line(progressLine(group))) : [];
  const peaks = peaksOf(bench.targets);
  if (asked('tps')) {
    show(output, 'Throughput and latency', loadTable(cells));
    show(output, 'Memory, most under these loads', peakTable(peaks));
  }
  const connects = asked('connect') ? await measureConnects(fewer) : [];
  if (asked('connect')) show(output, 'A connection for each transaction (-C)', connectTable(connects));
  const rows = asked('rows') ? await measureRows(fewer, superuserUrl) : [];
  if (asked('rows')) show(output, 'Rows of 1 MB, 4 clients', rowsTable(rows));
  const copies = asked('copy') ? await measureCopies(fewer, superuserUrl) : [];
  if (copies === undefined) output.line('\npsql is not on PATH: COPY left out');
  else if (asked('copy')) show(output, `COPY of ${bench.settings.copyMb} MB`, copyTable(copies));
  const idle = asked('memory') ? await measureIdleClients(fewer) : [];
  if (asked('memory')) show(output, 'Memory of a client that does nothing', idleTable(idle));
  return { cells, peaks, connects, rows, copies: copies ?? [], idle };
}

/** Bytes, by target; the direct way has no process, and systems without /proc tell nothing. */
function peaksOf(targets: readonly Target[]): Readonly<Record<string, number>> {
  return Object.fromEntries(
    targets.flatMap(({ name, pid }) => {
      const memory = pid === null ? null : memoryOf(pid);
      return memory === null ? [] : [[name, memory.peakBytes]];
    }),
  );
}

function show(output: Output, title: string, lines: readonly string[]): void {
  output.line(`\n${title}`);
  for (const line of lines) output.line(line);
}

await main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
});
