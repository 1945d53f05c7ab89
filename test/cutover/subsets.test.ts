/** Subsets switched one at a time: what is done to one says and does nothing about another. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Side, SubsetRules, TableName } from '../../src/core/ports.js';
import { StoppedDead } from '../../src/cutover/runner.js';
import type { StepPoint } from '../../src/cutover/settings.js';
import { Relay } from './relay.js';
import { codeOf, Stage, TABLES } from './stage.js';

const rule = (subset: string, tables: readonly string[]): SubsetRules => ({
  subset,
  tables,
  foreignKeys: 'together',
  crossing: 'refuse',
});
const SUBSETS = [rule('days', ['public.plain', 'public.root'])];
const isDay = ({ name }: TableName): boolean => /^(plain|root|leaf_.)$/.test(name);
const MEMBERS = {
  days: TABLES.filter((table) => isDay(table)),
  rest: TABLES.filter((table) => !isDay(table)),
};
type Part = keyof typeof MEMBERS;

async function open(): Promise<Stage> {
  const stage = await Stage.open({ subsets: SUBSETS });
  stage.shadow.members = MEMBERS;
  return stage;
}

/** Routes as recovered or switched, and who takes writes. */
async function expectLed(stage: Stage, sides: Readonly<Record<Part, Side>>): Promise<void> {
  for (const part of ['days', 'rest'] as const) {
    expect([part, stage.traffic.route(part).side]).toEqual([part, sides[part]]);
    expect([part, await stage.writableAtRest(MEMBERS[part])]).toEqual([part, [sides[part]]]);
  }
}

const done = { outcome: 'done' };
const switched = (stage: Stage, kind: 'cutover' | 'rollback', part: Part) =>
  stage.operate(kind, new AbortController().signal, part);

test('one after the other, back alone, and finalized only when none is left', async () => {
  await using stage = await open();
  await stage.pair.onSource.query("CREATE SEQUENCE public.free; SELECT setval('public.free', 700)");
  await stage.pair.onDestination.query('CREATE SEQUENCE public.free');
  await stage.pair.onSource.query(
    'INSERT INTO public.plain (note) SELECT n::text FROM generate_series(1, 50) n',
  );
  const last = async (name: string): Promise<number> =>
    Number(
      (await stage.pair.onDestination.query(`SELECT last_value FROM public.${name}`)).rows[0].last_value,
    );

  expect(await stage.operate('cutover', undefined, 'day').catch(codeOf)).toBe('request-invalid');
  expect(await switched(stage, 'cutover', 'days')).toMatchObject({ ...done, subset: 'days', epoch: 1 });
  await expectLed(stage, { days: 'destination', rest: 'source' });
  expect([await last('plain_id_seq'), await last('free')]).toEqual([expect.closeTo(82, -2), 1]);
  expect(await last('plain_id_seq')).toBeGreaterThan(50);
  expect(await switched(stage, 'cutover', 'days').catch(codeOf)).toBe('already-cut-over');
  expect(await switched(stage, 'rollback', 'rest').catch(codeOf)).toBe('not-cut-over');

  const status = await stage.coordinator.status();
  expect(status.route.side).toBe('source');
  expect(status.subsets?.map(({ subset, route, barriers }) => [subset, route.side, barriers])).toEqual([
    ['days', 'destination', { source: 'raised', destination: 'lowered' }],
    ['rest', 'source', { source: 'lowered', destination: 'raised' }],
  ]);
  const end = {
    removeFence: false,
    stopShadow: () => Promise.resolve(),
    signal: new AbortController().signal,
  };
  expect(await stage.coordinator.finalize(end).catch(codeOf)).toBe('not-cut-over');
  const gone = { stopWriters: () => Promise.resolve(), signal: new AbortController().signal };
  expect(await stage.coordinator.remove(gone).catch(codeOf)).toBe('already-cut-over');

  expect(await switched(stage, 'cutover', 'rest')).toMatchObject({ ...done, subset: 'rest' });
  await expectLed(stage, { days: 'destination', rest: 'destination' });
  expect(await last('free')).toBeGreaterThan(700);
  expect(await stage.operate('cutover').catch(codeOf)).toBe('already-cut-over');
  expect(await switched(stage, 'rollback', 'days')).toMatchObject({ ...done, epoch: 2 });
  await expectLed(stage, { days: 'source', rest: 'destination' });
  await stage.restart();
  await expectLed(stage, { days: 'source', rest: 'destination' });
  expect(await switched(stage, 'cutover', 'days')).toMatchObject({ ...done, epoch: 3 });
  expect(await stage.coordinator.finalize(end)).toMatchObject({ epoch: 3, fence: 'kept' });
  expect(await stage.restart()).toMatchObject({ finalized: true, route: { side: 'destination' } });
});

describe('a process that dies', () => {
  let stage: Stage;
  beforeAll(async () => {
    stage = await open();
    expect(await switched(stage, 'cutover', 'days')).toMatchObject(done);
  });
  afterAll(() => stage[Symbol.asyncDispose]());

  const points: readonly (readonly [StepPoint, Side])[] = [
    ['after:fence', 'source'],
    ['before:send-commit', 'source'],
    ['after:send-commit', 'destination'],
  ];
  test.each(points)('in a cutover of the rest, %s: the others stay where they are', async (point, side) => {
    stage.observe = (at) => {
      if (at === point) throw new Error('killed');
    };
    await expect(switched(stage, 'cutover', 'rest')).rejects.toBeInstanceOf(StoppedDead);
    stage.observe = undefined;
    await stage.restart();
    await expectLed(stage, { days: 'destination', rest: side });
    if (side === 'source') return;
    // Its way back, and dying on it before the source is opened again.
    stage.observe = (at) => {
      if (at === 'before:open') throw new Error('killed');
    };
    await expect(switched(stage, 'rollback', 'rest')).rejects.toBeInstanceOf(StoppedDead);
    stage.observe = undefined;
    await stage.restart();
    await expectLed(stage, { days: 'destination', rest: 'source' });
  });

  test('an operation that is undone leaves the others as they are', async () => {
    stage.shadow.recentMismatches = 1;
    expect((await switched(stage, 'cutover', 'rest')).outcome).toBe('aborted');
    expect((await switched(stage, 'rollback', 'days')).outcome).toBe('aborted');
    stage.shadow.recentMismatches = 0;
    await expectLed(stage, { days: 'destination', rest: 'source' });
  });

  test('other borders are refused while the sides differ', async () => {
    const restart = (subsets: readonly SubsetRules[]) => stage.restart({ subsets }).catch(codeOf);
    expect(await restart([])).toBe('journal-conflict');
    expect(await restart([rule('other', ['public.plain'])])).toBe('journal-conflict');
    expect(await restart([rule('days', ['public.plain', 'public.root', 'public.parent'])])).toBe(
      'journal-conflict',
    );
    await stage.restart({ subsets: SUBSETS });
    await expectLed(stage, { days: 'destination', rest: 'source' });
  });

  test('a destination that is lost is given up by what it led, and other borders may be drawn then', async () => {
    const { signal } = new AbortController();
    expect(await stage.coordinator.abandonDestination('gone', signal, 'rest').catch(codeOf)).toBe(
      'request-invalid',
    );
    expect(await stage.coordinator.abandonDestination('gone', signal)).toBe(3);
    expect(await stage.writableAtRest(MEMBERS.days)).toEqual(['source', 'destination']);
    expect(await stage.writableAtRest(MEMBERS.rest)).toEqual(['source']);
    // It returns, and is not trusted, by whatever names it is asked.
    expect(await stage.restart().catch(codeOf)).toBe('journal-conflict');
    expect(await stage.restart({ subsets: [] }).catch(codeOf)).toBe('journal-conflict');
    // The source, which no fence closes, is served all the same.
    expect(stage.recovery).toMatchObject({ route: { side: 'source' }, action: 'none' });
  });
});

test('of two that a lost destination led, the one that is given up is served, once it is silent', async () => {
  await using stage = await open();
  await using relay = await Relay.open(stage.pair.destination);
  const { signal } = new AbortController();
  for (const part of ['days', 'rest'] as const)
    expect(await switched(stage, 'cutover', part)).toMatchObject(done);
  await stage.restart({ subsets: SUBSETS, destination: relay.endpoint });
  const { coordinator } = stage;
  expect(await coordinator.abandonDestination('gone', signal, 'days').catch(codeOf)).toBe('request-invalid');
  relay.cut();
  expect(await coordinator.recover(signal).catch(codeOf)).toBe('route-unknown');
  expect(await coordinator.abandonDestination('gone', signal, 'days')).toBe(3);
  expect((await coordinator.recover(signal)).subsets?.map(({ subset, route }) => [subset, route])).toEqual([
    ['days', { side: 'source', epoch: 3 }],
    ['rest', { side: 'destination', epoch: 1 }],
  ]);
  expect(await stage.writableAtRest(MEMBERS.days)).toEqual(['source', 'destination']);
});

test.each(['source', 'destination'] as const)(
  'started while the sides differ and the %s is silent, what the other one alone decides is served',
  async (silent) => {
    await using stage = await open();
    await using relay = await Relay.open(stage.pair[silent]);
    expect(await switched(stage, 'cutover', 'days')).toMatchObject(done);
    relay.cut();
    const { signal } = new AbortController();
    await stage.restart({ subsets: SUBSETS, [silent]: relay.endpoint }).catch(() => undefined);
    const partial = await stage.coordinator.recover(signal);
    const [days, rest] =
      silent === 'source'
        ? [
            { side: 'destination', epoch: 1 },
            { side: 'source', epoch: 0, unknown: true },
          ]
        : [
            { side: 'destination', epoch: 0, unknown: true },
            { side: 'source', epoch: 0 },
          ];
    expect(partial.subsets?.map(({ subset, route, unknown }) => ({ subset, ...route, unknown }))).toEqual([
      { unknown: undefined, ...days, subset: 'days' },
      { unknown: undefined, ...rest, subset: 'rest' },
    ]);
    expect(partial.route.side).toBe(silent === 'source' ? 'destination' : 'source');
    expect(partial.missing?.code).toBe(silent === 'source' ? 'source-unreachable' : 'route-unknown');
    for (const kind of ['cutover', 'rollback'] as const) {
      const part = kind === 'cutover' ? 'rest' : 'days';
      expect(await switched(stage, kind, part).catch(codeOf)).toBe('route-unknown');
    }
    expect((await stage.coordinator.status()).subsets?.map((each) => each.unknown === true)).toEqual([
      silent === 'destination',
      silent === 'source',
    ]);
    relay.restore();
    expect((await stage.start()).missing).toBeUndefined();
    await expectLed(stage, { days: 'destination', rest: 'source' });
    // From now on a silent server takes nothing away.
    relay.cut();
    const again = await stage.coordinator.recover(signal);
    expect(again.missing).toBeUndefined();
    expect(again.subsets?.map(({ route }) => route)).toEqual([
      { side: 'destination', epoch: 1 },
      { side: 'source', epoch: 0 },
    ]);
  },
);

test('subsets are parted with the operator’s consent alone; the way back needs none', async () => {
  await using stage = await open();
  const restart = (parting: 'refuse' | 'accept') =>
    stage.restart({ subsets: SUBSETS, settings: { parting } });
  await restart('refuse');
  const refused = await switched(stage, 'cutover', 'days');
  expect(refused.findings.map(({ check }) => check)).toEqual(['subset-parting']);
  await restart('accept');
  expect(await switched(stage, 'cutover', 'days')).toMatchObject(done);
  await restart('refuse');
  expect(await switched(stage, 'rollback', 'days')).toMatchObject(done);
});

test('borders may be drawn anew while one side leads everything', async () => {
  await using stage = await open();
  await stage.restart({ subsets: [rule('one', ['public.parent'])] });
  await stage.coordinator.installBarriers(TABLES);
  const one = TABLES.filter(({ name }) => name === 'parent' || name === 'child');
  stage.shadow.members = { one };
  expect(await stage.operate('cutover', undefined, 'one')).toMatchObject(done);
  expect(await stage.writableAtRest(one)).toEqual(['destination']);
  expect(await stage.writableAtRest(MEMBERS.days)).toEqual(['source']);
  // A part is not switched where statements can't find it.
  await stage.restart({ subsets: [rule('one', ['public.parent'])], routesSubsets: false });
  const refused = await stage.operate('rollback', undefined, 'one');
  expect(refused).toMatchObject({ outcome: 'aborted', reason: { code: 'preflight-blocked' } });
  expect(refused.findings.map(({ check }) => check)).toEqual(['subset-routing-missing']);
});
