/**
 * One suite for every way of following, over a sidecar as its user runs it. `CONFORMANCE_METHOD=poll` runs one of them.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import pg from 'pg';
import type { ShadowMethod, VerifyReport } from '../../../src/core/ports.js';
import { SUPERUSER, SUPERUSER_PASSWORD } from '../../../src/app/demo/embedded-server.js';
import { databasePair, until, type DatabasePair } from '../../support/servers.js';
import { Stack } from '../../support/stack.js';
import { contents, digestSql, sql } from '../engine-harness.js';
import { CASES, SCHEMA, type Conditions } from './cases.js';

const only = process.env['CONFORMANCE_METHOD'];
const METHODS = (['log', 'mirror', 'poll'] satisfies ShadowMethod[]).filter(
  (method) => only === undefined || method === only,
);

describe.each(METHODS)('following by %s', (method) => {
  let pair: DatabasePair;
  let stack: Stack;
  let digests: string;
  const clients: pg.Client[] = [];

  beforeAll(async () => {
    pair = await databasePair();
    await sql(pair.onSource, SCHEMA);
    digests = await digestSql(pair.onSource, method === 'log' ? ['cache'] : []);
    stack = await Stack.start({
      source: pair.source,
      destination: pair.destination,
      yaml: `migration: { id: ${pair.source.database} }
shadow: { method: ${method}, pollIntervalMs: 100, compareIntervalMs: ${method === 'poll' ? 500 : 600_000}, retryFirstMs: 20, retryMaxMs: 200 }
cutover: { markTimeoutMs: 20000, holdBudgetMs: 30000, fenceTimeoutMs: 10000 }`,
    });
    await stack.following();
  });

  afterAll(async () => {
    await Promise.all(clients.map((client) => client.end().catch(() => undefined)));
    await (stack as Stack | undefined)?.[Symbol.asyncDispose]();
    await pair[Symbol.asyncDispose]();
  });

  const conditions: Conditions = {
    client: async () => {
      const client = new pg.Client({ connectionString: stack.url(SUPERUSER, SUPERUSER_PASSWORD) });
      client.on('error', () => undefined);
      await client.connect();
      clients.push(client);
      return client;
    },
    source: () => pair.onSource,
    cutConnections: async () => {
      for (const side of [pair.onSource, pair.onDestination]) {
        await side.query(
          `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE datname = current_database() AND application_name LIKE 'understudy %'
             AND application_name NOT LIKE '%test' AND pid <> pg_backend_pid()`,
        );
      }
    },
    restart: async () => {
      await stack.kill();
      await stack.run();
      await stack.following();
    },
  };

  /** By the log, rows of an unlogged table come over with a switch alone. */
  const followed = async (client: pg.Client): Promise<unknown> => {
    const { 'public.cache': cache, ...others } = await contents(client);
    return method === 'log' ? others : { ...others, cache };
  };

  /** At rest, the shadow comes to hold what the source does; what says so is not the product's own comparison. */
  const same = async (): Promise<void> => {
    await until(
      async () => {
        const [ours, theirs] = await Promise.all([
          pair.onSource.query(digests),
          pair.onDestination.query(digests),
        ]);
        return JSON.stringify(ours.rows) === JSON.stringify(theirs.rows);
      },
      { timeoutMs: 90_000, everyMs: 100, what: 'both sides to be the same' },
    ).catch(async (error: unknown) => {
      const [ours, theirs] = await Promise.all([followed(pair.onSource), followed(pair.onDestination)]);
      expect(theirs).toEqual(ours);
      throw error;
    });
  };

  it('copies what is there', async () => {
    await same();
    const { shadow } = await stack.status();
    expect(shadow.method?.method).toBe(method);
    expect(shadow.streams[0]?.lagMs).not.toBeNull();
  });

  it.each(CASES)('brings over: $name', async ({ run }) => {
    await run(conditions);
    await same();
  });

  it('is switched over and back, with writers under way and no write lost', async () => {
    const writer = await conditions.client();
    const written: number[] = [];
    const ending = new AbortController();
    let failed: unknown;
    const writing = (async () => {
      for (let id = 70_000; !ending.signal.aborted; id += 1) {
        await writer.query('INSERT INTO public.account (id, owner) VALUES ($1, $2)', [id, 'switched']);
        await writer.query('INSERT INTO public.cache VALUES ($1, $2)', [id, written.at(-1) ?? null]);
        if (id % 3 === 0) {
          await writer.query('DELETE FROM public.account WHERE id = $1', [id]);
          await writer.query('DELETE FROM public.cache WHERE id = $1', [id]);
        } else {
          written.push(id);
        }
        // Some writes to each step; more would take the cores from the processes under test.
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    })().catch((error: unknown) => (failed = error));
    const ids = async (client: pg.Client, table: string): Promise<readonly number[]> =>
      (
        await client.query<{ id: string }>(
          `SELECT id FROM public.${table} WHERE id BETWEEN 70000 AND 999999 ORDER BY id`,
        )
      ).rows.map((row) => Number(row.id));
    const over = await stack.operate('cutover');
    expect(over.outcome, JSON.stringify(over.reason)).toBe('done');
    const few = written.length;
    await until(() => written.length > few + 10, { what: 'writes on the destination' });
    const back = await stack.operate('rollback');
    expect(back.outcome, JSON.stringify(back.reason)).toBe('done');
    ending.abort();
    await writing;
    expect(failed).toBeUndefined();
    expect(await ids(pair.onSource, 'account')).toEqual(written);
    expect(await ids(pair.onSource, 'cache')).toEqual(written);
    await same();
  });

  it('ends with both sides verified equal', async () => {
    const report = await stack.operate<VerifyReport>('verify');
    expect(report.mismatches).toBe(0);
    expect(report.rows).toBeGreaterThan(900);
  });
});
