/**
 * The ways to the one server: straight, through the peers, through Understudy in each of its modes with capture on and
 * off. All run for the whole bench; those that aren't measured at the moment are idle.
 */
import { mkdtemp } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { resolveConfig } from '../../src/app/config.js';
import { configKeys, type UnderstudyConfig } from '../../src/app/config/schema.js';
import type { EmbeddedServer } from '../../src/app/demo/embedded-server.js';
import type { RunOwner } from '../../src/app/demo/run-owner.js';
import { UnderstudyProcess } from '../../src/app/demo/understudy-process.js';
import { findHaproxy, startHaproxy } from '../support/haproxy.js';
import type { Account, Mode, ServerAddress } from '../support/pgbench.js';
import { findPgbouncer, startPgbouncer, type PgbouncerMode } from '../support/pgbouncer.js';

export interface Target {
  readonly name: string;
  readonly address: ServerAddress;
  /** Of the proxy; null for the direct way. */
  readonly pid: number | null;
  /** Query modes it can't do, with the reason. */
  readonly without: Partial<Readonly<Record<Mode, string>>>;
}

export interface Targets {
  readonly targets: readonly Target[];
  /** One line for each peer and mode: its version, or why it is left out. */
  readonly notes: readonly string[];
}

export interface TargetContext {
  readonly owner: RunOwner;
  readonly server: EmbeddedServer;
  readonly account: Account;
  /** The account's SCRAM secret as the server stores it. */
  readonly verifier: string;
  /** Whether the person asked for the target of that name. */
  readonly wanted: (name: string) => boolean;
}

const PROGRAM = fileURLToPath(new URL('../../../dist/app/main.js', import.meta.url));
const UNDERSTUDY_MODES = ['session', 'transaction', 'pipelined'] as const;
type UnderstudyMode = (typeof UNDERSTUDY_MODES)[number];

export async function openTargets(context: TargetContext): Promise<Targets> {
  const { server, wanted } = context;
  const direct = { name: 'direct', host: server.host, port: server.port };
  const targets: Target[] = [{ name: direct.name, address: direct, pid: null, without: {} }];
  const notes: string[] = [];
  if (wanted('haproxy')) {
    const program = findHaproxy();
    notes.push(program === undefined ? 'HAProxy is not on PATH, left out' : `${program.version}, TCP mode`);
    if (program !== undefined) targets.push(await haproxy(context, program, direct));
  }
  for (const mode of ['session', 'transaction'] as const) {
    const name = `pgbouncer-${mode}`;
    if (!wanted(name)) continue;
    const program = findPgbouncer();
    if (program === undefined) {
      notes.push(`PgBouncer is not on PATH, ${name} left out`);
      continue;
    }
    const target = await pgbouncer(context, program, mode, direct);
    notes.push(
      `${program.version}, ${mode} mode${Object.values(target.without)
        .map((why) => `; ${why}`)
        .join('')}`,
    );
    targets.push(target);
  }
  for (const mode of UNDERSTUDY_MODES) {
    const config = configOf(mode);
    if (config === undefined) notes.push(`Understudy has no ${mode} mode, left out`);
    else
      for (const capture of [true, false]) {
        const name = `understudy-${mode}${capture ? '' : '-nocapture'}`;
        if (wanted(name))
          targets.push(await understudy(context, name, { ...config, capture: { enabled: capture } }));
      }
  }
  return { targets, notes };
}

/** What sets the mode, if this build has it: looked up in the schema. Session mode is what there always is. */
function configOf(mode: UnderstudyMode): Partial<UnderstudyConfig> | undefined {
  const key = configKeys().find(({ path }) => path.at(-1) === 'poolMode');
  if (key === undefined) return mode === 'session' ? {} : undefined;
  const config = key.path.reduceRight<unknown>(
    (inner, name) => ({ [name]: inner }),
    mode,
  ) as Partial<UnderstudyConfig>;
  try {
    resolveConfig({
      source: { url: 'postgres://u@localhost/a' },
      destination: { url: 'postgres://u@localhost/b' },
      ...config,
    });
    return config;
  } catch (error) {
    if (mode === 'session') throw error;
    return undefined;
  }
}

async function haproxy(
  { owner }: TargetContext,
  program: NonNullable<ReturnType<typeof findHaproxy>>,
  direct: ServerAddress,
): Promise<Target> {
  const peer = await owner.acquire(
    'HAProxy',
    () => startHaproxy(program, owner.folder, direct),
    (started) => started[Symbol.asyncDispose](),
  );
  return targetAt('haproxy', peer, {});
}

async function pgbouncer(
  { owner, account, verifier }: TargetContext,
  program: NonNullable<ReturnType<typeof findPgbouncer>>,
  mode: PgbouncerMode,
  direct: ServerAddress,
): Promise<Target> {
  const peer = await owner.acquire(
    'PgBouncer',
    () =>
      startPgbouncer(program, {
        mode,
        parent: owner.folder,
        server: direct,
        user: account.user,
        database: account.database,
        verifier,
      }),
    (started) => started[Symbol.asyncDispose](),
  );
  const prepares = mode === 'session' || program.preparesInTransactionMode;
  return targetAt(
    `pgbouncer-${mode}`,
    peer,
    prepares ? {} : { prepared: 'no prepared statements in this mode before 1.21' },
  );
}

async function understudy(
  { owner, server, account }: TargetContext,
  name: string,
  config: Partial<UnderstudyConfig>,
): Promise<Target> {
  const folder = await mkdtemp(join(owner.folder, `${name}-`));
  const started = await owner.acquire(
    name,
    (signal) =>
      UnderstudyProcess.start({
        folder,
        sourceUrl: server.url(account.database),
        destinationUrl: server.url('postgres'),
        config: {
          shadow: { enabled: false },
          log: { level: 'warn' },
          limits: { clientsMax: 1500 },
          ...config,
        },
        program: PROGRAM,
        signal,
      }),
    (process) => process.stop(),
  );
  return targetAt(name, { port: started.port, pid: started.pid ?? null }, {});
}

function targetAt(
  name: string,
  at: { readonly port: number; readonly pid: number | null },
  without: Target['without'],
): Target {
  return { name, address: { name, host: '127.0.0.1', port: at.port }, pid: at.pid, without };
}
