/**
 * What the armed router costs: pgbench's selects through one Understudy, by turns while one side leads everything and while
 * a table that nobody uses is led by the other one. `npm run bench:armed -- [--seconds N] [--rounds N]
 * [--protocol simple|extended|prepared]`.
 */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs, promisify } from 'node:util';
import { EmbeddedServer, SUPERUSER, SUPERUSER_PASSWORD, freePort } from '../src/app/demo/embedded-server.js';
import { comesTrue } from './chaos/checks.js';
import { Subject } from './chaos/subject.js';
import { Connection } from './chaos/workers.js';
import { describeMachine, machineLines } from './support/machine.js';
import { Output } from './support/output.js';

const PROTOCOLS = ['simple', 'extended', 'prepared'] as const;
const CLIENTS = [1, 8] as const;
const DATABASE = 'armed';
/** Of Linux's clock ticks, whatever the hardware (USER_HZ). */
const MICROS_PER_TICK = 10_000;

interface Figure {
  readonly protocol: (typeof PROTOCOLS)[number];
  readonly clients: number;
  readonly way: 'direct' | 'disarmed' | 'armed';
  /** One for each round. */
  readonly tps: number[];
  readonly latencyMs: number[];
  /** Of Understudy, connecting included; empty where it isn't asked, or can't be known. */
  readonly cpuMicros: number[];
}

const run = promisify(execFile);
const env = { ...process.env, PGPASSWORD: SUPERUSER_PASSWORD };

async function pgbench(port: number, ...more: readonly string[]): Promise<string> {
  const where = ['-h', '127.0.0.1', '-p', String(port), '-U', SUPERUSER];
  return (await run('pgbench', [...where, ...more, DATABASE], { env })).stdout;
}

/**
 * One figure more. pgbench's time runs from before its clients connect, one after another: on a busy machine that can take
 * all of it, and then no transaction is begun. So it is given twice as much until there are some. Tells of each such try.
 */
async function measure(
  figure: Figure,
  { port, pid }: { readonly port: number; readonly pid: number | undefined },
  seconds: number,
  tell: (what: string) => void,
): Promise<void> {
  const { protocol, clients } = figure;
  for (let given = seconds; given <= seconds * 16; given *= 2) {
    const how = ['-n', '-S', '-M', protocol, '-c', String(clients), '-j', '1', '-T', String(given)];
    const before = cpuMicrosOf(pid);
    const text = await pgbench(port, ...how);
    const used = cpuMicrosOf(pid) - before;
    const tps = Number(/tps = ([\d.]+)/.exec(text)?.[1]);
    if (!(tps > 0)) {
      tell(`     ${protocol}, ${clients} clients: nothing was begun in the ${given} s that connecting took`);
      continue;
    }
    figure.tps.push(tps);
    figure.latencyMs.push(Number(/latency average = ([\d.]+)/.exec(text)?.[1]));
    const done = Number(/actually processed: (\d+)/.exec(text)?.[1]);
    if (Number.isFinite(used / done)) figure.cpuMicros.push(used / done);
    return;
  }
  throw new Error(`pgbench completes nothing: ${protocol}, ${clients} clients`);
}

/** CPU time that all threads of a process have had; NaN where that can't be known. */
function cpuMicrosOf(pid: number | undefined): number {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const [user, system] = stat.slice(stat.lastIndexOf(')')).split(' ').slice(12, 14).map(Number);
    return ((user ?? Number.NaN) + (system ?? Number.NaN)) * MICROS_PER_TICK;
  } catch {
    return Number.NaN;
  }
}

function line(round: number | null, { protocol, clients, way, tps, latencyMs, cpuMicros }: Figure): string {
  const of = (values: readonly number[]): number | undefined =>
    round === null ? median(values) : values[round];
  const [ms, rate, micros] = [of(latencyMs), of(tps), of(cpuMicros)];
  const cpu = micros === undefined || Number.isNaN(micros) ? '' : `  ${Math.round(micros)} µs of CPU each`;
  const which = round === null ? 'median ' : `round ${round + 1}`;
  return `${which}  ${protocol.padEnd(9)} ${clients} clients  ${way.padEnd(9)} ${ms?.toFixed(3)} ms  ${Math.round(rate ?? 0)}/s${cpu}`;
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

async function started(servers: readonly [EmbeddedServer, EmbeddedServer], folder: string) {
  const [source, destination] = servers;
  for (const server of servers) {
    const client = await Connection.open(server.url('postgres'));
    await client.query(`CREATE DATABASE ${DATABASE}`);
    client.destroy();
  }
  await pgbench(source.port, '-i', '-q', '-s', '5');
  const client = await Connection.open(source.url(DATABASE));
  await client.query('CREATE TABLE public.aside (id int PRIMARY KEY)');
  client.destroy();
  const [port, adminPort] = [await freePort(), await freePort()];
  const yaml = [
    `listen: { host: 127.0.0.1, port: ${port} }`,
    `admin: { host: 127.0.0.1, port: ${adminPort} }`,
    `source: { url: '${source.url(DATABASE)}' }`,
    `destination: { url: '${destination.url(DATABASE)}' }`,
    'capture: { enabled: true }',
    'cutover: { parting: accept }',
    'subsets: { aside: { tables: [public.aside] } }',
  ];
  const subject = await Subject.configure(folder, yaml.join('\n'), adminPort);
  await subject.start();
  if (!(await comesTrue(async () => (await subject.status())?.shadow.phase === 'following', 120_000)))
    throw new Error(`the shadow does not follow: ${subject.output.slice(-2000)}`);
  return { subject, port };
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      seconds: { type: 'string', default: '3' },
      rounds: { type: 'string', default: '5' },
      protocol: { type: 'string' },
      json: { type: 'boolean', default: false },
    },
  });
  const output = new Output(values.json);
  const machine = describeMachine();
  for (const text of machineLines(machine)) output.line(text);
  const settings = { fsync: 'off', max_wal_senders: '10', max_replication_slots: '10' };
  const folder = await mkdtemp(join(tmpdir(), 'armed-'));
  const source = await EmbeddedServer.create({ version: 14, settings });
  const destination = await EmbeddedServer.create({ version: 18, settings });
  const protocols = PROTOCOLS.filter((each) => values.protocol === undefined || each === values.protocol);
  const figures = protocols.flatMap((protocol) =>
    CLIENTS.flatMap((clients) =>
      (['direct', 'disarmed', 'armed'] as const).map((way): Figure => ({
        protocol,
        clients,
        way,
        tps: [],
        latencyMs: [],
        cpuMicros: [],
      })),
    ),
  );
  let subject: Subject | undefined;
  try {
    const running = await started([source, destination], folder);
    subject = running.subject;
    for (let round = 0; round < Number(values.rounds); round++) {
      for (const way of ['direct', 'disarmed', 'armed'] as const) {
        if (way !== 'direct') {
          const kind = way === 'armed' ? 'cutover' : 'rollback';
          const armed = (await subject.status())?.proxy.armed === true;
          if (armed !== (way === 'armed')) await subject.operate(kind, { subset: 'aside' });
          if ((await subject.status())?.proxy.armed !== (way === 'armed')) throw new Error(`${kind} failed`);
        }
        const server =
          way === 'direct'
            ? { port: source.port, pid: undefined }
            : { port: running.port, pid: subject.pids[0] };
        for (const figure of figures.filter((each) => each.way === way)) {
          await measure(figure, server, Number(values.seconds), (what) => output.line(what));
          output.line(line(round, figure));
        }
      }
    }
  } finally {
    await subject?.kill();
    await source[Symbol.asyncDispose]();
    await destination[Symbol.asyncDispose]();
    await rm(folder, { recursive: true, force: true });
  }
  output.line();
  for (const figure of figures) output.line(line(null, figure));
  await output.result('armed', { machine, settings: values, figures });
}

await main();
