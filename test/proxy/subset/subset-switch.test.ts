/** Subsets are switched one at a time, forth and back, while clients work: each statement lands where its subset is. */
import fc from 'fast-check';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Side, SubsetId } from '../../../src/core/ports.js';
import type { HoldOptions, PrepareReport, StallReport } from '../../../src/core/traffic-ports.js';
import { databasePair, until, type DatabasePair } from '../../support/servers.js';
import { RawClient, firstColumn, send, sqlStates, statuses, type RunningProxy } from '../proxy-support.js';
import { makeSides, startRouted } from './subset-support.js';

type Step =
  | { readonly do: 'begin' | 'commit' | 'rollback' | 'savepoint' | 'back' | 'setting' | 'nothing' | 'both' }
  | {
      readonly do: 'read' | 'write';
      readonly subset: 'a' | 'b' | 'rest';
      readonly how: 'simple' | 'extended' | 'named';
    }
  | { readonly do: 'flip'; readonly subset: 'a' | 'b' | 'rest' };

const subset = fc.constantFrom('a' as const, 'b' as const, 'rest' as const);
const steps = fc.array(
  fc.oneof(
    {
      weight: 6,
      arbitrary: fc.record({ do: fc.constantFrom('begin' as const, 'commit' as const, 'rollback' as const) }),
    },
    {
      weight: 4,
      arbitrary: fc.record({
        do: fc.constantFrom(
          'savepoint' as const,
          'back' as const,
          'setting' as const,
          'nothing' as const,
          'both' as const,
        ),
      }),
    },
    {
      weight: 12,
      arbitrary: fc.record({
        do: fc.constantFrom('read' as const, 'write' as const),
        subset,
        how: fc.constantFrom('simple' as const, 'extended' as const, 'named' as const),
      }),
    },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('flip' as const), subset }) },
  ),
  { minLength: 30, maxLength: 60 },
);

const TABLES = { a: 'a1', b: 'b1', rest: 'r1' } as const;

/** What must come of each step: a model of one session over two servers, which knows nothing of how it is done. */
class Model {
  status: 'idle' | 'open' | 'failed' = 'idle';
  side: Side | null = null;
  saved = false;

  touch(sides: readonly Side[]): Side | '0A000' | '25P02' {
    if (this.status === 'failed') return '25P02';
    const [first = 'source', second = first] = sides;
    if (first !== second || (this.side !== null && this.side !== first)) {
      if (this.status === 'open') this.status = 'failed';
      return '0A000';
    }
    if (this.status === 'open') this.side = first;
    return first;
  }

  end(): void {
    this.status = 'idle';
    this.side = null;
    this.saved = false;
  }
}

describe.each(['session', 'transaction'] as const)('in %s mode', (poolMode) => {
  let pair: DatabasePair;
  let running: RunningProxy;

  beforeAll(async () => {
    pair = await databasePair();
    await makeSides(pair);
    running = await startRouted(pair, {}, { poolMode, poolSizeMax: 2 });
  });
  afterAll(async () => {
    await running[Symbol.asyncDispose]();
    await pair[Symbol.asyncDispose]();
  });

  const options: HoldOptions = {
    drainTimeoutMs: 20_000,
    onDrainTimeout: 'abort',
    onPinned: 'refuse',
    signal: new AbortController().signal,
  };

  const sideOf = (subset: SubsetId): Side => running.proxy.route(subset).side;

  async function flip(subset: SubsetId, to: Side): Promise<{ prepared: PrepareReport; stall: StallReport }> {
    const { proxy } = running;
    const { epoch } = proxy.route(subset);
    const prepared = await proxy.prepare(subset, to, options.signal);
    await proxy.hold(subset, to, options);
    await proxy.switchTo(subset, { side: to, epoch: epoch + 1 });
    return { prepared, stall: proxy.release(subset) };
  }

  const raw = (): Promise<RawClient> => RawClient.connect(running.port, running.database);

  test('before subsets are parted, sessions that hold what can’t be moved are counted', async () => {
    const { proxy } = running;
    await using listening = await raw();
    await using other = await raw();
    await listening.run([send.query('LISTEN news')]);
    await listening.run([send.query('CREATE TEMPORARY TABLE mine (id int)')]);
    await other.run([send.query("SET application_name = 'free'")]);
    const to = sideOf('a') === 'source' ? 'destination' : 'source';
    const { blockers, bound = [], sessions } = await proxy.prepare('a', to, options.signal);
    expect([sessions, blockers]).toEqual([2, []]);
    expect(bound.map(({ reason }) => reason).sort()).toEqual(['listening', 'temporary-table']);
    expect(new Set(bound.map(({ sessionId }) => sessionId)).size).toBe(1);
    // Nothing was made ready for them, and nobody was moved.
    expect(proxy.status().gates).toMatchObject({ all: { warm: 0 } });
  });

  test('a part whose side is not known is refused by name, and the others are served', async () => {
    const { proxy } = running;
    const routes = ['a', 'b', 'rest'].map((subset) => ({ subset, route: proxy.route(subset) }));
    proxy.setRoute('rest', { side: 'destination', epoch: 0 }, 'subset rest can’t be served');
    proxy.setRoute('b', { side: 'destination', epoch: 0 }, 'subset b can’t be served');
    expect(proxy.status()).toMatchObject({ armed: true });
    // A connection begins where something is served.
    await using client = await raw();
    expect(await client.column('SELECT note FROM a1')).toEqual([sideOf('a')]);
    const refused = await client.run([send.query('SELECT note FROM r1')]);
    expect(sqlStates(refused)).toEqual(['57P03']);
    await client.run([send.query('BEGIN')]);
    expect(sqlStates(await client.run([send.query('SELECT FROM a1, b1')]))).toEqual(['57P03']);
    expect(sqlStates(await client.run([send.query('SELECT 1')]))).toEqual(['25P02']);
    await client.run([send.query('ROLLBACK')]);
    for (const { subset, route } of routes) proxy.setRoute(subset, route);
    expect(await client.column('SELECT note FROM r1')).toEqual([sideOf('rest')]);
  });

  test('a part is switched, then another, and the last brings all together', async () => {
    const { proxy } = running;
    await using client = await raw();
    await using late = await raw();
    expect(proxy.status().armed).toBe(false);
    await client.run([send.query("SET application_name = 'kept'")]);
    expect((await flip('a', 'destination')).prepared).toMatchObject({ sessions: 2, warm: 2, blockers: [] });
    // Nobody is moved before a statement asks for it.
    expect(proxy.status()).toMatchObject({ armed: true, bySide: { source: 2, destination: 0 } });
    expect(await client.column('SELECT note FROM a1')).toEqual(['destination']);
    expect(await client.column('SELECT note FROM b1')).toEqual(['source']);
    expect(await client.column('SELECT note FROM a1')).toEqual(['destination']);
    expect(proxy.status().bySide).toEqual({ source: 1, destination: 1 });

    // A transaction that is open holds up the switch of any subset, and is finished where it was begun.
    await client.run([send.query('BEGIN')]);
    expect(await client.column('SELECT note FROM b1')).toEqual(['source']);
    const flipping = flip('b', 'destination');
    await until(() => proxy.status().gates['all']?.state === 'closing');
    late.write(send.query('SELECT note FROM b1'));
    expect(await client.column('SELECT note FROM b1')).toEqual(['source']);
    client.write(send.query('COMMIT'), send.query('SELECT note FROM b1'));
    await flipping;
    await Promise.all([client.readies(2), late.readies(1)]);
    for (const each of [client, late])
      expect(
        each
          .take()
          .filter(({ type }) => type === 'D')
          .map(firstColumn),
      ).toEqual(['destination']);

    const { prepared } = await flip('rest', 'destination');
    expect(prepared.warm).toBe(2);
    expect(proxy.status()).toMatchObject({ armed: false, bySide: { source: 0, destination: 2 } });
    expect(await client.column('SELECT r1.note FROM r1, a1, b1')).toEqual(['destination']);
    expect(await client.column('SHOW application_name')).toEqual(['kept']);
    for (const subset of ['rest', 'b', 'a']) await flip(subset, 'source');
    expect(proxy.status()).toMatchObject({ armed: false, bySide: { source: 2, destination: 0 } });
    expect(await late.column('SELECT r1.note FROM r1, a1, b1')).toEqual(['source']);
    expect(await client.column('CREATE TEMP TABLE now_it_can AS SELECT 1; SELECT 2')).toEqual(['2']);
  });

  test('a side that can’t be reached refuses what is there, and the rest goes on', async () => {
    // Nothing listens there.
    const gone = { ...pair, destination: { ...pair.destination, port: 1 } };
    await using half = await startRouted(gone, undefined, { poolMode, poolSizeMax: 2 });
    await using client = await RawClient.connect(half.port, half.database);
    expect(sqlStates(await client.run([send.query('SELECT note FROM a1')]))).toEqual(['57P03']);
    expect(await client.column('SELECT note FROM b1')).toEqual(['source']);
    await client.run([send.query('BEGIN')]);
    const messages = await client.run([
      send.parse('SELECT note FROM a1'),
      send.bind(),
      send.execute(),
      send.sync(),
    ]);
    expect([sqlStates(messages), statuses(messages)]).toEqual([['57P03'], 'E']);
    await client.run([send.query('ROLLBACK')]);
    expect(await client.column('SELECT note FROM b1')).toEqual(['source']);
  });

  async function play(script: readonly Step[]): Promise<void> {
    const client = new pg.Client({ connectionString: running.url });
    client.on('error', () => undefined);
    await client.connect();
    const model = new Model();
    const outcome = async (query: string | pg.QueryConfig): Promise<string> => {
      try {
        const { rows } = await client.query<{ note?: string }>(query);
        return rows[0]?.note ?? 'done';
      } catch (error) {
        return (error as { code?: string }).code ?? String(error);
      }
    };
    const control = async (sql: string): Promise<void> => {
      expect(await outcome(sql)).toBe(model.status === 'failed' ? '25P02' : 'done');
    };
    try {
      for (const step of script) {
        switch (step.do) {
          case 'begin':
            if (model.status !== 'idle') break;
            await outcome('BEGIN');
            model.status = 'open';
            break;
          case 'commit':
          case 'rollback':
            expect(await outcome(step.do)).toBe('done');
            model.end();
            break;
          case 'savepoint':
            if (model.status !== 'open') break;
            await control('SAVEPOINT s');
            model.saved = true;
            break;
          case 'back':
            if (!model.saved) break;
            expect(await outcome('ROLLBACK TO s')).toBe('done');
            model.status = 'open';
            break;
          case 'setting':
            await control("SET LOCAL app.tenant = 'x'");
            break;
          case 'nothing':
            await control('SELECT 1');
            break;
          case 'both': {
            const expected = model.touch([sideOf('a'), sideOf('b')]);
            expect(await outcome('SELECT a1.note FROM a1, b1')).toBe(expected);
            break;
          }
          case 'read':
          case 'write': {
            const table = TABLES[step.subset];
            const where = sideOf(step.subset);
            const text =
              step.do === 'read'
                ? `SELECT note FROM ${table} WHERE id = 1`
                : `UPDATE ${table} SET note = note WHERE id = 1 RETURNING note`;
            const values = { simple: {}, extended: { values: [] }, named: { name: text.slice(0, 20) } }[
              step.how
            ];
            const query = { text, ...values, ...(step.how === 'simple' ? {} : { queryMode: 'extended' }) };
            const expected = model.touch([where]);
            expect(await outcome(query)).toBe(expected);
            break;
          }
          case 'flip':
            if (model.status !== 'idle') break;
            await flip(step.subset, sideOf(step.subset) === 'source' ? 'destination' : 'source');
        }
      }
    } finally {
      await client.end();
    }
  }

  test('random transactions land where a model says, whichever subset is switched in between', async () => {
    await fc.assert(fc.asyncProperty(steps, play), { numRuns: 4, endOnFailure: true });
  });
});
