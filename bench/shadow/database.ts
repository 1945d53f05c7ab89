/** The two servers' databases as the bench needs them: pgbench's tables, a marker to wait for, and what a server costs. */
import { execFile } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { promisify } from 'node:util';
import pg from 'pg';
import { SUPERUSER_PASSWORD, type EmbeddedServer } from '../../src/app/demo/embedded-server.js';

export const DATABASE = 'bench';
/** Where PostgreSQL's own replication writes, on the destination's server. */
export const BUILTIN_DATABASE = 'builtin';
export const ROLE = 'bench';
const TABLES = ['pgbench_accounts', 'pgbench_branches', 'pgbench_tellers', 'pgbench_history', 'bench_marker'];

/** A secondary index beside the primary keys, as any table in use has one. */
const INDEX_SQL = 'CREATE INDEX pgbench_accounts_bid ON pgbench_accounts (bid)';
const MARKER_SQL = 'CREATE TABLE bench_marker (id bigint PRIMARY KEY)';
const PUBLICATION = 'bench_builtin';

export async function withClient<T>(url: string, use: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    return await use(client);
  } finally {
    await client.end();
  }
}

export async function until(
  condition: () => Promise<boolean>,
  what: string,
  { timeoutMs = 300_000, pauseMs = 10 }: { readonly timeoutMs?: number; readonly pauseMs?: number } = {},
): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(`timed out waiting for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, pauseMs));
  }
}

async function pgbench(
  program: string,
  server: EmbeddedServer,
  args: readonly string[],
  database: string,
): Promise<void> {
  const address = ['-h', server.host, '-p', String(server.port), '-U', ROLE, database];
  await promisify(execFile)(program, [...args, ...address], {
    env: { ...process.env, PGPASSWORD: SUPERUSER_PASSWORD, PGSSLMODE: 'disable' },
    maxBuffer: 64 * 1024 * 1024,
  });
}

/** Tables, keys and indexes, and the rows of `scale`; null for none, as before a subscription's copy. */
async function makeTables(
  program: string,
  server: EmbeddedServer,
  database: string,
  scale: number | null,
): Promise<void> {
  const steps = scale === null ? ['-I', 'dtp'] : ['-s', String(scale)];
  await pgbench(program, server, ['-i', '-q', ...steps], database);
  await withClient(server.url(database, ROLE, SUPERUSER_PASSWORD), async (client) => {
    await client.query(INDEX_SQL);
    await client.query(MARKER_SQL);
  });
}

async function makeDatabase(server: EmbeddedServer, database: string): Promise<void> {
  await withClient(server.url('postgres'), async (client) => {
    const { rowCount } = await client.query('SELECT FROM pg_roles WHERE rolname = $1', [ROLE]);
    if (rowCount === 0) await client.query(`CREATE ROLE ${ROLE} LOGIN PASSWORD '${SUPERUSER_PASSWORD}'`);
    await client.query(`CREATE DATABASE ${database} OWNER ${ROLE}`);
  });
}

export async function makeSource(program: string, server: EmbeddedServer, scale: number): Promise<void> {
  await makeDatabase(server, DATABASE);
  await makeTables(program, server, DATABASE, scale);
  await withClient(server.url(DATABASE), async (client) => {
    await client.query(`CREATE PUBLICATION ${PUBLICATION} FOR TABLE ${TABLES.join(', ')}`);
    await client.query('VACUUM ANALYZE');
  });
}

/** An empty database for Understudy's shadow, in the place of any earlier one. The role comes from the source. */
export async function makeShadowDatabase(source: EmbeddedServer, destination: EmbeddedServer): Promise<void> {
  await withClient(source.url(DATABASE), async (client) => {
    await until(async () => {
      const { rows } = await client.query<{ slot_name: string; active: boolean }>(
        "SELECT slot_name, active FROM pg_replication_slots WHERE slot_name LIKE 'understudy%'",
      );
      for (const slot of rows)
        if (!slot.active) await client.query('SELECT pg_drop_replication_slot($1)', [slot.slot_name]);
      return rows.length === 0;
    }, 'the former slot');
    await client.query('DROP SCHEMA IF EXISTS understudy CASCADE');
  });
  await withClient(destination.url('postgres'), async (client) => {
    await client.query(`DROP DATABASE IF EXISTS ${DATABASE} WITH (FORCE)`);
    await client.query(`CREATE DATABASE ${DATABASE}`);
  });
}

/** PostgreSQL's own logical replication between the two servers. */
export class Builtin {
  readonly #source: EmbeddedServer;
  readonly #destination: EmbeddedServer;
  readonly #program: string;

  constructor(program: string, source: EmbeddedServer, destination: EmbeddedServer) {
    this.#program = program;
    this.#source = source;
    this.#destination = destination;
  }

  get url(): string {
    return this.#destination.url(BUILTIN_DATABASE);
  }

  /** Makes the empty tables with all their indexes, as a restored schema would have them. */
  async prepare(): Promise<void> {
    await this.drop();
    await makeDatabase(this.#destination, BUILTIN_DATABASE);
    await makeTables(this.#program, this.#destination, BUILTIN_DATABASE, null);
  }

  /** Resolves once every table's rows are there. */
  async copy(): Promise<void> {
    const { host, port } = this.#source;
    const connection = `host=${host} port=${port} dbname=${DATABASE} user=postgres password=${SUPERUSER_PASSWORD}`;
    await withClient(this.url, async (client) => {
      await client.query(`CREATE SUBSCRIPTION bench CONNECTION '${connection}' PUBLICATION ${PUBLICATION}`);
      await until(async () => {
        const { rows } = await client.query<{ open: string }>(
          "SELECT count(*) AS open FROM pg_subscription_rel WHERE srsubstate NOT IN ('f', 's', 'r')",
        );
        return rows[0]?.open === '0';
      }, 'the built-in copy');
    });
  }

  /** Resolves once the tables' own workers have handed over to the subscription's. */
  async synchronised(): Promise<void> {
    await withClient(this.url, (client) =>
      until(async () => {
        const { rows } = await client.query<{ open: string }>(
          "SELECT count(*) AS open FROM pg_subscription_rel WHERE srsubstate <> 'r'",
        );
        return rows[0]?.open === '0';
      }, 'the built-in workers'),
    );
  }

  async enable(): Promise<void> {
    await withClient(this.url, (client) => client.query('ALTER SUBSCRIPTION bench ENABLE'));
  }

  async disable(): Promise<void> {
    await withClient(this.url, async (client) => {
      await client.query('ALTER SUBSCRIPTION bench DISABLE');
      await until(async () => {
        const { rowCount } = await client.query(
          "SELECT FROM pg_stat_activity WHERE backend_type LIKE 'logical replication %worker'",
        );
        return rowCount === 0;
      }, 'the built-in workers to end');
    });
  }

  /** Ends the subscription, and with it its slot, which would keep the source's log. */
  async drop(): Promise<void> {
    const exists = await withClient(this.#destination.url('postgres'), async (client) => {
      const { rowCount } = await client.query('SELECT FROM pg_database WHERE datname = $1', [
        BUILTIN_DATABASE,
      ]);
      return rowCount === 1;
    });
    if (!exists) return;
    await withClient(this.url, (client) => client.query('DROP SUBSCRIPTION IF EXISTS bench'));
    await withClient(this.#destination.url('postgres'), (client) =>
      client.query(`DROP DATABASE ${BUILTIN_DATABASE} WITH (FORCE)`),
    );
  }
}

export async function checkpoint(...servers: readonly EmbeddedServer[]): Promise<void> {
  await Promise.all(
    servers.map((server) => withClient(server.url('postgres'), (client) => client.query('CHECKPOINT'))),
  );
}

/** Seconds of CPU that a server has used, all its processes, those that ended too; null where /proc does not tell. */
export function serverCpuSeconds(server: EmbeddedServer): number | null {
  try {
    let ticks = 0;
    for (const entry of readdirSync('/proc')) {
      if (!/^\d+$/.test(entry)) continue;
      const fields = statOf(entry);
      // The postmaster's own, with those of the children it has waited for, and those of the ones that live.
      if (entry === String(server.pid)) ticks += sum(fields.slice(11, 15));
      else if (fields[1] === String(server.pid)) ticks += sum(fields.slice(11, 13));
    }
    return ticks / 100;
  } catch {
    return null;
  }
}

/** The fields of /proc/PID/stat from the third on; none where the process has just ended. */
function statOf(pid: string): readonly string[] {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return text.slice(text.lastIndexOf(')') + 2).split(' ');
  } catch {
    return [];
  }
}

function sum(values: readonly string[]): number {
  return values.reduce((total, value) => total + Number(value), 0);
}
