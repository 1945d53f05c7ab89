/** An engine on a pair of databases, and exact comparison of both sides by other means than its own. */
import { randomUUID } from 'node:crypto';
import { expect } from 'vitest';
import type pg from 'pg';
import { systemClock } from '../../src/core/clock.js';
import { createLog, silentLog } from '../../src/core/log.js';
import type {
  DatabaseEndpoint,
  Direction,
  ShadowControl,
  ShadowPhase,
  Side,
  TableName,
} from '../../src/core/ports.js';
import { emitMessageSql, quoteIdent, quoteTable } from '../../src/core/postgres.js';
import { ShadowEngine } from '../../src/shadow/engine.js';
import { FollowEngine } from '../../src/shadow/follow/engine.js';
import { SHADOW_DEFAULTS, type ShadowOptions } from '../../src/shadow/settings.js';
import { readTables } from '../../src/shadow/postgres/tables.js';
import { until } from '../support/servers.js';

export interface Sides {
  readonly source: DatabaseEndpoint;
  readonly destination: DatabaseEndpoint;
  readonly onSource: pg.Client;
  readonly onDestination: pg.Client;
}

const log = process.env['SHADOW_LOG'] === undefined ? silentLog : createLog('debug');

export class EngineHarness implements AsyncDisposable {
  /** By the log, unless the options name another method. */
  readonly engine: ShadowControl & Pick<ShadowEngine, 'start' | 'stop'>;
  readonly phases: ShadowPhase[] = [];
  readonly built: string[] = [];
  readonly #sides: Sides;

  constructor(
    sides: Sides,
    options: Partial<ShadowOptions> = {},
    /** Runs after the schema is built and before the first row is copied. */
    beforeCopy: () => Promise<void> = () => Promise.resolve(),
  ) {
    this.#sides = sides;
    const settings = {
      source: sides.source,
      destination: sides.destination,
      migrationId: sides.source.database.slice(0, 40),
      copyRoles: false,
      retryFirstMs: 20,
      retryMaxMs: 200,
      ...options,
    };
    const context = {
      log,
      clock: systemClock,
      afterSchemaBuilt: async (tables: readonly TableName[]) => {
        this.built.push(...tables.map(({ schema, name }) => `${schema}.${name}`));
        await beforeCopy();
      },
      onPhase: (phase: ShadowPhase) => void this.phases.push(phase),
    };
    const method = settings.method ?? 'auto';
    this.engine =
      method === 'auto' || method === 'log'
        ? new ShadowEngine(settings, context)
        : new FollowEngine({ ...SHADOW_DEFAULTS, ...settings }, { method, reason: 'asked for' }, context);
  }

  start(): this {
    this.engine.start();
    return this;
  }

  async reach(phase: ShadowPhase): Promise<this> {
    await until(
      async () => {
        const status = await this.engine.status();
        if (status.phase === 'failed' && phase !== 'failed') throw new Error(JSON.stringify(status.error));
        return status.phase === phase;
      },
      { what: `phase ${phase}`, timeoutMs: 90_000 },
    ).catch(async (error: unknown) => {
      throw new Error(`${String(error)}; ${JSON.stringify(await this.engine.status())}`);
    });
    return this;
  }

  /** Emits a mark where the direction begins and waits until it is applied. */
  async caughtUp(direction: Direction = 'forward'): Promise<void> {
    const id = randomUUID();
    const client = direction === 'forward' ? this.#sides.onSource : this.#sides.onDestination;
    await client.query(emitMessageSql({ t: 'mark', id }));
    await this.engine
      .waitForMark(direction, id, AbortSignal.timeout(60_000))
      .catch(async (error: unknown) => {
        throw new Error(`${String(error)}; ${JSON.stringify(await this.engine.status())}`);
      });
  }

  /** Both sides hold the same rows in every table; returns how many. */
  async expectSame(): Promise<number> {
    const [ours, theirs] = await Promise.all([
      contents(this.#sides.onSource),
      contents(this.#sides.onDestination),
    ]);
    expect(theirs).toEqual(ours);
    return Object.values(ours).reduce((sum, rows) => sum + rows.length, 0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.engine.stop();
  }
}

/** Every row of every table as its output text, sorted. */
/** A query for what all tables hold, by table: to be asked often. {@link contents} says in what two differ. */
export async function digestSql(client: pg.Client, except: readonly string[] = []): Promise<string> {
  const tables = (await readTables(client)).filter(
    ({ kind, name }) => kind !== 'partitioned' && !except.includes(name),
  );
  return tables
    .map((table) => {
      const columns = table.columns.map(({ name }) => `t.${quoteIdent(name)}`).join(', ');
      const row = `CAST(ROW(${columns}) AS pg_catalog.text)`;
      return `SELECT '${table.name.replaceAll("'", "''")}' AS name, count(*) AS rows,
        pg_catalog.md5(string_agg(${row}, E'\\n' ORDER BY ${row})) AS digest FROM ONLY ${quoteTable(table)} AS t`;
    })
    .join(' UNION ALL ');
}

export async function contents(client: pg.Client): Promise<Record<string, readonly string[]>> {
  const result: Record<string, readonly string[]> = {};
  for (const table of await readTables(client)) {
    if (table.kind === 'partitioned') continue;
    const columns = table.columns.map(({ name }) => `t.${quoteIdent(name)}`);
    // A function takes a hundred arguments at most.
    const parts: string[] = [];
    for (let at = 0; at < columns.length; at += 60) {
      const some = columns.slice(at, at + 60);
      parts.push(`format('${some.map(() => '%L').join(',')}', ${some.join(', ')})`);
    }
    const row = parts.length === 0 ? `''` : parts.join(` || ',' || `);
    const { rows } = await client.query<{ row: string }>(
      `SELECT ${row} AS row FROM ONLY ${quoteTable(table)} AS t ORDER BY 1`,
    );
    result[`${table.schema}.${table.name}`] = rows.map((each) => each.row);
  }
  return result;
}

export async function emitRoute(client: pg.Client, side: Side, epoch: number): Promise<void> {
  await client.query(emitMessageSql({ t: 'route', subset: 'all', epoch, side }));
}

/** The journal of a cutover, as far as a shadow asks it: the source leads, and nothing is open. */
export const JOURNAL = `
  CREATE TABLE understudy.route (subset text PRIMARY KEY, side text, epoch bigint);
  CREATE TABLE understudy.operation (subset text, kind text, state text);
  INSERT INTO understudy.route VALUES ('all', 'source', 1)`;

/** Runs statements with `public` on the search path, as one transaction. */
export async function sql(client: pg.Client, text: string): Promise<void> {
  await client.query(`SET search_path = public; ${text}; SET search_path = ''`);
}
