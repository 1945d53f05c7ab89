/** A proxy in front of one pool, anew for each test, and what is asked of it. */
import { afterAll, afterEach, beforeAll, beforeEach } from 'vitest';
import { POOL_DEFAULTS, type PoolSettings, type PoolStatus } from '../../../src/proxy/pool/pool-settings.js';
import type { ProxySettings } from '../../../src/proxy/settings.js';
import { databasePair, until, type DatabasePair } from '../../support/servers.js';
import {
  RawClient,
  firstColumn,
  recordingTap,
  send,
  startProxy,
  type RunningProxy,
} from '../proxy-support.js';

export class PoolStage {
  readonly #schema: string;
  readonly #pool: Partial<PoolSettings>;
  #pair: DatabasePair | undefined;
  #running: RunningProxy | undefined;
  tap = recordingTap();

  /** `schema`: of the source, made once. `pool`: of each proxy, unless told otherwise. */
  constructor(schema: string, pool: Partial<PoolSettings>) {
    this.#schema = schema;
    this.#pool = pool;
    beforeAll(async () => {
      this.#pair = await databasePair();
      await this.pair.onSource.query(this.#schema);
    });
    afterAll(async () => {
      await this.pair[Symbol.asyncDispose]();
    });
    beforeEach(async () => {
      await this.start();
    });
    afterEach(async () => {
      await this.running[Symbol.asyncDispose]();
    });
  }

  get pair(): DatabasePair {
    if (this.#pair === undefined) throw new Error('there are no databases yet');
    return this.#pair;
  }

  get running(): RunningProxy {
    if (this.#running === undefined) throw new Error('there is no proxy yet');
    return this.#running;
  }

  /** Another proxy, in the place of the one there is. */
  async start(over: Partial<PoolSettings> = {}, settings: Partial<ProxySettings> = {}): Promise<void> {
    await this.#running?.[Symbol.asyncDispose]();
    this.tap = recordingTap();
    const pool = { ...POOL_DEFAULTS, ...this.#pool, ...over };
    this.#running = await startProxy(this.pair, { pool, ...settings }, { tap: this.tap });
    if (pool.poolMode !== 'pipelined') return;
    await using first = await this.raw();
    await this.sharing(first);
  }

  readonly raw = (): Promise<RawClient> => RawClient.connect(this.running.port, this.running.database);

  /** The one of the mode it was made with. */
  readonly pool = (): PoolStatus => {
    const all = this.running.proxy.status().pools;
    const only = all.find(({ mode }) => mode === this.#pool.poolMode);
    if (only === undefined) throw new Error('there is no pool');
    return only;
  };

  readonly shared = (): PoolStatus['shared'] => this.pool().shared;

  /** Clients that keep a connection. */
  readonly pinned = (): number => this.running.proxy.status().sessions - this.pool().clients;

  /** Until reads are shared. */
  async sharing(client: RawClient): Promise<void> {
    await until(async () => {
      const before = this.shared().statements;
      await client.column('SELECT 1 AS ready');
      return this.shared().statements > before;
    });
  }

  /** How many of what `work` ran were shared. */
  async sharedBy(work: () => Promise<unknown>): Promise<number> {
    const before = this.shared().statements;
    await work();
    return this.shared().statements - before;
  }

  /** Runs texts once, so that how long they take is known: before that nothing is sent behind them. */
  async timed(...texts: string[]): Promise<void> {
    await using client = await this.raw();
    for (const sql of texts) await client.run([send.query(sql)]);
  }
}

/** Of schema and settings that most tests of `pipelined` need. */
export function pipelinedStage(): PoolStage {
  return new PoolStage(PIPELINED_SCHEMA, {
    poolMode: 'pipelined',
    poolSizeMax: 3,
    sharedConnections: 1,
    // So that a busy machine is not taken for a slow statement.
    sharedReadBoundMs: 20_000,
  });
}

export function transactionStage(): PoolStage {
  return new PoolStage(TRANSACTION_SCHEMA, { poolMode: 'transaction', poolSizeMax: 3 });
}

const TRANSACTION_SCHEMA = `
    CREATE TABLE public.item (id int PRIMARY KEY, name text);
    INSERT INTO public.item SELECT n, 'item ' || n FROM generate_series(1, 1000) n;`;
const PIPELINED_SCHEMA = `
    CREATE TABLE public.item (id int PRIMARY KEY, name text);
    INSERT INTO public.item SELECT n, 'item ' || n FROM generate_series(1, 1000) n;
    CREATE TABLE public.counted (n int);
    INSERT INTO public.counted VALUES (0);
    CREATE SEQUENCE public.seq;
    CREATE TYPE public.mood AS ENUM ('sad');
    CREATE VIEW public.plain AS SELECT id, lower(name) AS name FROM public.item;
    CREATE VIEW public.counting AS SELECT nextval('public.seq') AS n;
    CREATE TABLE public.guarded (id int, owner text);
    ALTER TABLE public.guarded ENABLE ROW LEVEL SECURITY;
    CREATE FUNCTION public.bump() RETURNS int LANGUAGE sql VOLATILE
      AS 'UPDATE public.counted SET n = n + 1 RETURNING n';
    CREATE POLICY p ON public.guarded USING (public.bump() > 0);
    CREATE FUNCTION public.label(i public.item) RETURNS text LANGUAGE sql STABLE AS 'SELECT ''x''';`;

/** Parse, Bind, Describe, Execute and Sync. */
export const batch = (sql: string, ...values: string[]): Buffer[] => [
  send.parse(sql),
  send.bind(values),
  send.describe('P'),
  send.execute(),
  send.sync(),
];

export const letter = (n: number): string => String.fromCharCode(97 + (n % 26));

export const rowsOf = (messages: readonly { type: string; payload: Buffer }[]): (string | null)[] =>
  messages.filter(({ type }) => type === 'D').map((message) => firstColumn(message));
