/**
 * Two subsets of a live database, moved and brought back one at a time by the real shadow and coordinator, while writers
 * that know no proxy write to whichever side takes it; the process dies in the middle.
 */
import { randomBytes } from 'node:crypto';
import type pg from 'pg';
import { expect, test } from 'vitest';
import { systemClock } from '../../src/core/clock.js';
import { silentLog } from '../../src/core/log.js';
import type { Side, SubsetRules } from '../../src/core/ports.js';
import { connectControl, FENCE_SQLSTATE, GUARD_SQLSTATE } from '../../src/core/postgres.js';
import { CutoverCoordinator } from '../../src/cutover/coordinator.js';
import { StoppedDead } from '../../src/cutover/runner.js';
import {
  DEFAULT_CUTOVER_SETTINGS,
  type CutoverDeps,
  type ForeignKeySideStatus,
} from '../../src/cutover/settings.js';
import { ShadowEngine } from '../../src/shadow/engine.js';
import { readFingerprint } from '../../src/shadow/postgres/fingerprint.js';
import { TrafficDouble } from '../cutover/stage.js';
import { databasePair, until, type DatabasePair } from '../support/servers.js';

const SUBSETS: readonly SubsetRules[] = [
  { subset: 'orders', tables: ['public.orders'], foreignKeys: 'unenforced', crossing: 'refuse' },
];

/** One process of Understudy, without its proxy. */
class Life {
  readonly traffic = new TrafficDouble();
  readonly shadow: ShadowEngine;
  readonly coordinator: CutoverCoordinator;

  constructor(pair: DatabasePair, observe?: CutoverDeps['observe']) {
    const { source, destination } = pair;
    const migrationId = source.database;
    const common = { source, destination, migrationId, subsets: SUBSETS };
    this.shadow = new ShadowEngine(
      { ...common, copyRoles: false, retryFirstMs: 20, retryMaxMs: 200 },
      {
        log: silentLog,
        clock: systemClock,
        afterSchemaBuilt: async (tables) => {
          await this.coordinator.ensureJournal();
          await this.coordinator.installBarriers(tables);
        },
      },
    );
    this.coordinator = new CutoverCoordinator({
      ...common,
      subset: 'all',
      routesSubsets: true,
      traffic: this.traffic,
      shadow: this.shadow,
      log: silentLog,
      clock: systemClock,
      settings: {
        ...DEFAULT_CUTOVER_SETTINGS,
        parting: 'accept',
        holdBudgetMs: 60_000,
        markTimeoutMs: 40_000,
        fenceTimeoutMs: 20_000,
      },
      random: (bytes) => randomBytes(bytes).toString('hex'),
      inspect: () => Promise.resolve([]),
      readFingerprint,
      ...(observe === undefined ? {} : { observe }),
    });
  }

  async start(): Promise<this> {
    const { subsets = [] } = await this.coordinator.recover(new AbortController().signal);
    for (const { subset, route } of subsets) this.traffic.setRoute(subset, route);
    this.shadow.start();
    await until(async () => (await this.shadow.status()).phase === 'following', {
      what: 'following',
      timeoutMs: 90_000,
    });
    await this.coordinator.ensureJournal();
    return this;
  }

  async end(): Promise<void> {
    this.coordinator.destroy();
    await this.shadow.stop();
  }

  operate(kind: 'cutover' | 'rollback', subset: string) {
    return this.coordinator[kind]({ subset, signal: new AbortController().signal, onEvent: () => undefined });
  }
}

/** Writes rows one by one to the side that takes them; remembers what was acknowledged. */
class Writer {
  readonly acknowledged: number[] = [];
  side: Side = 'source';
  readonly #table: string;
  readonly #clients: Readonly<Record<Side, pg.Client>>;
  #stopped = false;
  readonly #running: Promise<void>;

  constructor(table: string, clients: Readonly<Record<Side, pg.Client>>) {
    this.#table = table;
    this.#clients = clients;
    this.#running = this.#run();
  }

  async #run(): Promise<void> {
    for (let id = 1; !this.#stopped;) {
      try {
        await this.#clients[this.side].query(
          `INSERT INTO public.${this.#table} (id, v) VALUES (${id}, '${this.side}');
           UPDATE public.${this.#table} SET v = v || '.' WHERE id = ${id - 3}`,
        );
        this.acknowledged.push(id);
        id += 1;
      } catch (error) {
        const { code } = error as pg.DatabaseError;
        if (code !== FENCE_SQLSTATE && code !== GUARD_SQLSTATE) throw error;
        this.side = this.side === 'source' ? 'destination' : 'source';
      }
      await systemClock.sleep(5);
    }
  }

  /** Some more were acknowledged, on that side. */
  async progress(side: Side): Promise<void> {
    const before = this.acknowledged.length;
    await until(() => Promise.resolve(this.side === side && this.acknowledged.length > before + 3), {
      what: `${this.#table} written on the ${side}`,
      timeoutMs: 30_000,
    });
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#running;
  }
}

/** The foreign key between the two, on both sides. */
async function keyIs(life: Life, wanted: Partial<ForeignKeySideStatus>): Promise<void> {
  let seen: unknown;
  await until(
    async () => {
      const [key] = (await life.coordinator.status()).foreignKeys ?? [];
      seen = key;
      return [key?.source, key?.destination].every(
        (side) =>
          side?.state === wanted.state &&
          JSON.stringify(side?.violations) === JSON.stringify(wanted.violations),
      );
    },
    { what: `the foreign key to be ${wanted.state ?? ''}`, timeoutMs: 60_000 },
  ).catch(() => expect(seen).toMatchObject({ source: wanted, destination: wanted }));
}

async function rows(client: pg.Client, table: string): Promise<readonly string[]> {
  const found = await client.query<{ row: string }>(
    `SELECT id || ' ' || v AS row FROM public.${table} ORDER BY id`,
  );
  return found.rows.map(({ row }) => row);
}

test('subsets move and come back one at a time under writers, over a death, and no write is lost', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(`
    CREATE TABLE public.orders (id bigint PRIMARY KEY, v text);
    CREATE TABLE public.users (id bigint PRIMARY KEY, v text, last bigint CONSTRAINT ordered REFERENCES public.orders);
    INSERT INTO public.orders SELECT -n, 'first' FROM generate_series(1, 200) n;
    INSERT INTO public.users SELECT -n, 'first', -n FROM generate_series(1, 200) n`);
  const open = async (): Promise<Readonly<Record<Side, pg.Client>>> => ({
    source: await connectControl('source', pair.source, { purpose: 'writer' }),
    destination: await connectControl('destination', pair.destination, { purpose: 'writer' }),
  });
  const clients = [await open(), await open()] as const;
  let dieAt: string | undefined;
  const observe = (point: string): void => {
    if (point === dieAt) throw new Error('killed');
  };
  let life = await new Life(pair, observe).start();
  const orders = new Writer('orders', clients[0]);
  const users = new Writer('users', clients[1]);
  const done = { outcome: 'done' };
  try {
    expect(await life.operate('cutover', 'orders')).toMatchObject(done);
    await Promise.all([orders.progress('destination'), users.progress('source')]);
    // Its order is on the other side, or will be.
    await pair.onSource.query(`INSERT INTO public.users VALUES (-500, 'astray', 1e9), (-501, 'early', 1e6)`);
    await pair.onDestination.query(`INSERT INTO public.orders VALUES (1e6, 'meant')`);

    // Dead after the other's fence: the fence is lowered by the next process, and orders stays where it is.
    dieAt = 'after:fence';
    await expect(life.operate('cutover', 'rest')).rejects.toBeInstanceOf(StoppedDead);
    dieAt = undefined;
    await life.end();
    life = await new Life(pair, observe).start();
    await Promise.all([orders.progress('destination'), users.progress('source')]);

    expect(await life.operate('cutover', 'rest')).toMatchObject(done);
    await Promise.all([orders.progress('destination'), users.progress('destination')]);
    await keyIs(life, { state: 'restored', violations: { rows: 1, keys: 1 } });
    await pair.onDestination.query(`UPDATE public.users SET last = 1e6 WHERE id = -500`);

    // Dead past the way back's commit: it is completed by the next one.
    dieAt = 'before:open';
    await expect(life.operate('rollback', 'orders')).rejects.toBeInstanceOf(StoppedDead);
    dieAt = undefined;
    await life.end();
    life = await new Life(pair, observe).start();
    await Promise.all([orders.progress('source'), users.progress('destination')]);
    await keyIs(life, { state: 'unenforced' });
    expect(await life.operate('rollback', 'rest')).toMatchObject(done);
    await users.progress('source');
    await keyIs(life, { state: 'enforced' });
    expect(await life.shadow.status()).toMatchObject({ phase: 'following', error: null });
  } finally {
    await Promise.all([orders.stop(), users.stop()]);
  }
  const signal = AbortSignal.timeout(60_000);
  const ahead = await life.shadow.verify({ direction: 'forward', tables: ['public.orders'] }, signal);
  const back = await life.shadow.verify({ direction: 'forward', tables: ['public.users'] }, signal);
  expect([ahead.mismatches, back.mismatches]).toEqual([0, 0]);
  for (const [table, writer] of [
    ['orders', orders],
    ['users', users],
  ] as const) {
    const there = await rows(pair.onDestination, table);
    expect(there).toEqual(await rows(pair.onSource, table));
    const ids = there.map((row) => Number(row.split(' ')[0])).filter((id) => id > 0 && id < 1e6);
    expect(ids).toEqual(writer.acknowledged);
  }
  await life.end();
  await Promise.all(clients.flatMap((each) => [each.source.end(), each.destination.end()]));
});
