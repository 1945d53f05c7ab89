/**
 * What outlives a run: one PostgreSQL 14, one 18, a Toxiproxy with a proxy for each link, and, where this can be had, a
 * small disk for the destination's tables. Each run gets databases of its own.
 */
import { execFileSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmSync, statSync, writeSync, chownSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Toxiproxy, type Proxy, type ToxicAttributeTypes } from 'toxiproxy-node-client';
import { ToxiproxyDouble } from '../../test/support/toxiproxy-double.js';
import {
  EmbeddedServer,
  SUPERUSER,
  SUPERUSER_PASSWORD,
  freePort,
  type ServerVersion,
} from '../../src/app/demo/embedded-server.js';
import { LINKS, type FaultName, type Link, type LinkFault } from './plan.js';
import { APP_PASSWORD, APP_ROLE, SCHEMA_SQL } from './schema.js';
import { Connection } from './workers.js';

const TEMPLATE = 'chaos_template';
const SMALL_DISK_MB = 96;
const SETTINGS = {
  fsync: 'off',
  max_connections: '70',
  max_wal_senders: '10',
  max_replication_slots: '10',
  autovacuum_naptime: '5s',
  log_min_messages: 'log',
};

export type ServerSide = 'source' | 'destination';
export const SERVER_SIDES: readonly ServerSide[] = ['source', 'destination'];

/** A file system of a few megabytes that holds the destination's tables and not its log. */
class SmallDisk {
  readonly folder: string;
  #filler: string | undefined;

  private constructor(folder: string) {
    this.folder = folder;
  }

  /** A sentence where it can't be made. */
  static make(owner: { readonly uid: number; readonly gid: number }): SmallDisk | string {
    if (process.platform !== 'linux' || process.getuid?.() !== 0) {
      return 'a small disk can only be mounted by root on Linux';
    }
    const folder = mkdtempSync(join(tmpdir(), 'chaos-disk-'));
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${SMALL_DISK_MB}m`, 'tmpfs', folder], {
        stdio: 'ignore',
      });
    } catch {
      rmSync(folder, { recursive: true });
      return 'mounting a small disk was refused';
    }
    chownSync(folder, owner.uid, owner.gid);
    return new SmallDisk(folder);
  }

  fill(): void {
    this.#filler = join(this.folder, 'filler');
    const file = openSync(this.#filler, 'w');
    try {
      for (const bytes of [1 << 20, 1 << 14, 1 << 12]) {
        const block = Buffer.alloc(bytes);
        while (wrote(file, block));
      }
    } finally {
      closeSync(file);
    }
  }

  free(): void {
    if (this.#filler !== undefined) rmSync(this.#filler, { force: true });
    this.#filler = undefined;
  }

  unmount(): void {
    execFileSync('umount', ['-l', this.folder], { stdio: 'ignore' });
    rmSync(this.folder, { recursive: true, force: true });
  }
}

function wrote(file: number, block: Buffer): boolean {
  try {
    return writeSync(file, block) === block.length;
  } catch {
    return false;
  }
}

export interface StageOptions {
  /** Of a Toxiproxy server on this machine; the stand-in where absent. */
  readonly toxiproxyUrl?: string;
  /** So many times as long may everything take, for a machine that has little time to give; 1 where absent. */
  readonly patience?: number;
  /** See {@link EmbeddedServerOptions.cluster}. */
  readonly clusters?: Readonly<Record<ServerVersion, string>>;
}

export class Stage implements AsyncDisposable {
  readonly servers: Readonly<Record<ServerSide, EmbeddedServer>>;
  readonly listenPort: number;
  readonly adminPort: number;
  /** Faults that can't be made here, and why. */
  readonly skipped: ReadonlyMap<FaultName, string>;
  readonly disk: SmallDisk | null;
  readonly patience: number;
  readonly #toxiproxy: Toxiproxy;
  readonly #double: ToxiproxyDouble | null;
  /** How many were added: two faults of an act may be the same. */
  #toxics = 0;
  readonly #links: Readonly<Record<Link, Proxy>>;

  private constructor(
    servers: Readonly<Record<ServerSide, EmbeddedServer>>,
    ports: readonly [number, number],
    network: { toxiproxy: Toxiproxy; double: ToxiproxyDouble | null; links: Readonly<Record<Link, Proxy>> },
    disk: SmallDisk | string,
    patience: number,
  ) {
    this.patience = patience;
    this.servers = servers;
    [this.listenPort, this.adminPort] = ports;
    this.#toxiproxy = network.toxiproxy;
    this.#double = network.double;
    this.#links = network.links;
    this.disk = typeof disk === 'string' ? null : disk;
    this.skipped = new Map(typeof disk === 'string' ? [['disk-full', disk]] : []);
  }

  static async open({ toxiproxyUrl, patience = 1, clusters }: StageOptions = {}): Promise<Stage> {
    const cluster = (version: ServerVersion): { readonly cluster?: string } =>
      clusters === undefined ? {} : { cluster: clusters[version] };
    const [source, destination] = await Promise.all([
      EmbeddedServer.create({ version: 14, settings: SETTINGS, ownGroup: true, ...cluster(14) }),
      EmbeddedServer.create({ version: 18, settings: SETTINGS, ownGroup: true, ...cluster(18) }),
    ]);
    const ports = [await freePort(), await freePort()] as const;
    const double = toxiproxyUrl === undefined ? await ToxiproxyDouble.start() : null;
    const toxiproxy = new Toxiproxy(toxiproxyUrl ?? double?.url ?? '');
    const prefix = `chaos_${process.pid}`;
    const proxies = await toxiproxy.populate([
      { name: `${prefix}_client`, listen: '127.0.0.1:0', upstream: `127.0.0.1:${ports[0]}` },
      { name: `${prefix}_source`, listen: '127.0.0.1:0', upstream: `127.0.0.1:${source.port}` },
      { name: `${prefix}_destination`, listen: '127.0.0.1:0', upstream: `127.0.0.1:${destination.port}` },
    ]);
    const link = (name: Link): Proxy => {
      const proxy = proxies[`${prefix}_${name}`];
      if (proxy === undefined) throw new Error(`Toxiproxy made no proxy for the ${name} link`);
      return proxy;
    };
    const links = { client: link('client'), source: link('source'), destination: link('destination') };
    const stage = new Stage(
      { source, destination },
      ports,
      { toxiproxy, double, links },
      SmallDisk.make(statSync(destination.folder)),
      patience,
    );
    await stage.#prepare();
    return stage;
  }

  async #prepare(): Promise<void> {
    await this.asSuperuser('source', 'postgres', async (source) => {
      await source.query(`CREATE ROLE ${APP_ROLE} LOGIN PASSWORD '${APP_PASSWORD}'`);
      await source.query(`CREATE DATABASE ${TEMPLATE}`);
      // One verifier on both sides: a proxy's login opens only servers that hold the same.
      const { rows } = await source.query<{ rolname: string; rolpassword: string }>(
        `SELECT rolname, rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL`,
      );
      await this.asSuperuser('destination', 'postgres', async (destination) => {
        await destination.query(`CREATE ROLE ${APP_ROLE} LOGIN`);
        for (const { rolname, rolpassword } of rows) {
          await destination.query(`ALTER ROLE ${rolname} PASSWORD '${rolpassword}'`);
        }
        if (this.disk !== null) {
          await destination.query(`CREATE TABLESPACE chaos_small LOCATION '${this.disk.folder}'`);
        }
      });
    });
    await this.asSuperuser('source', TEMPLATE, async (client) => void (await client.query(SCHEMA_SQL)));
  }

  /** Past all links. */
  async asSuperuser<T>(
    side: ServerSide,
    database: string,
    act: (client: Connection) => Promise<T>,
  ): Promise<T> {
    const client = await Connection.open(this.servers[side].url(database));
    try {
      return await act(client);
    } finally {
      client.destroy();
    }
  }

  async createDatabases(name: string): Promise<void> {
    await Promise.all([
      this.asSuperuser('source', 'postgres', (client) =>
        client.query(`CREATE DATABASE ${name} TEMPLATE ${TEMPLATE}`),
      ),
      this.asSuperuser('destination', 'postgres', (client) =>
        client.query(`CREATE DATABASE ${name}${this.disk === null ? '' : ' TABLESPACE chaos_small'}`),
      ),
    ]);
  }

  /** With their slots and sessions. */
  async dropDatabases(name: string): Promise<void> {
    for (const side of SERVER_SIDES) {
      await this.asSuperuser(side, 'postgres', async (client) => {
        await client.query(
          `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '${name}' AND pid <> pg_backend_pid()`,
        );
        for (let attempt = 0; attempt < 100; attempt++) {
          const dropped = await client
            .query(
              `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '${name}'`,
            )
            .then(
              () => true,
              () => false,
            );
          if (dropped) break;
          await new Promise((resolve) => setTimeout(resolve, 20));
        }
        await client.query(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`);
      });
    }
  }

  /** As Understudy and its clients reach it: through the link. */
  linkUrl(link: Link, database: string): string {
    const role = link === 'client' ? `${APP_ROLE}:${APP_PASSWORD}` : `${SUPERUSER}:${SUPERUSER_PASSWORD}`;
    return `postgres://${role}@${this.#links[link].listen}/${database}`;
  }

  /** As an application reaches a server that knows nothing of Understudy. */
  directUrl(side: ServerSide, database: string): string {
    return this.servers[side].url(database, APP_ROLE, APP_PASSWORD);
  }

  async disturb(link: Link, fault: LinkFault, variant: number): Promise<void> {
    const proxy = this.#links[link];
    const add = (
      type: Parameters<Proxy['addToxic']>[0]['type'],
      stream: 'upstream' | 'downstream',
      attributes: ToxicAttributeTypes,
    ) =>
      proxy.addToxic({
        name: `${type}_${stream}_${(this.#toxics += 1)}`,
        type,
        stream,
        toxicity: 1,
        attributes,
      });
    const one = variant % 2 === 0 ? 'upstream' : 'downstream';
    switch (fault) {
      case 'lost':
        await proxy.update({ enabled: false, listen: proxy.listen, upstream: proxy.upstream });
        return;
      case 'slow':
        await add('latency', 'downstream', { latency: 20 + (variant % 7) * 50, jitter: 20 });
        return;
      case 'narrow':
        await add('bandwidth', 'downstream', { rate: 2 + (variant % 20) });
        return;
      case 'stalled':
        await add('timeout', 'upstream', { timeout: 0 });
        await add('timeout', 'downstream', { timeout: 0 });
        return;
      case 'one-way':
        await add('timeout', one, { timeout: 0 });
        return;
      case 'half-closed':
        await add('slow_close', one === 'upstream' ? 'downstream' : 'upstream', { delay: 1000 });
        await add('limit_data', one, { bytes: variant % 2000 });
        return;
      case 'reset':
        await add('reset_peer', one, { timeout: variant % 30 });
        return;
      case 'sliced':
        await add('slicer', 'upstream', { average_size: 7, size_variation: 5, delay: 100 });
        await add('slicer', 'downstream', { average_size: 11, size_variation: 9, delay: 100 });
        return;
      default:
        throw new Error(`unknown fault ${String(fault satisfies never)}`);
    }
  }

  /** All links as they should be. */
  async calm(): Promise<void> {
    for (const link of LINKS) {
      const proxy = this.#links[link];
      const { data } = await this.#toxiproxy.api.get<{ readonly name: string }[]>(
        `${proxy.getPath()}/toxics`,
      );
      for (const { name } of data) await this.#toxiproxy.api.delete(`${proxy.getPath()}/toxics/${name}`);
      await proxy.update({ enabled: true, listen: proxy.listen, upstream: proxy.upstream });
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const link of LINKS) await this.#links[link].remove().catch(() => undefined);
    await this.#double?.[Symbol.asyncDispose]();
    for (const side of SERVER_SIDES) await this.servers[side][Symbol.asyncDispose]();
    this.disk?.unmount();
  }
}
