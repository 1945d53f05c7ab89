/** Several subsets switched in one operation: all of them or none, whatever dies. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { OperationKind, Side, SubsetRules, SubsetTie } from '../../src/core/ports.js';
import { StoppedDead } from '../../src/cutover/runner.js';
import type { StepPoint } from '../../src/cutover/settings.js';
import { taken } from '../../src/cutover/together.js';
import { Relay } from './relay.js';
import { codeOf, Stage, TABLES } from './stage.js';

const rule = (subset: string, tables: readonly string[]): SubsetRules => ({
  subset,
  tables,
  foreignKeys: 'together',
  crossing: 'refuse',
});
const SUBSETS = [rule('days', ['public.plain', 'public.root']), rule('kin', ['public.parent'])];
const MEMBERS = {
  days: TABLES.filter(({ name }) => /^(plain|root|leaf_.)$/.test(name)),
  kin: TABLES.filter(({ name }) => /^(parent|child)$/.test(name)),
  rest: TABLES.filter(({ name }) => name === 'Tab le'),
};
const PARTS = ['days', 'kin', 'rest'] as const;
const TIES: readonly SubsetTie[] = [
  { a: 'kin', b: 'days', by: 'crossing', detail: '12 transactions' },
  { a: 'kin', b: 'rest', by: 'crossing-unknown', detail: 'nothing was captured yet' },
];
const tie = (a: string, b: string, by: SubsetTie['by']): SubsetTie => ({ a, b, by, detail: '' });

test('what is not to be parted comes along, in chains, as far as it is on the side that is left', () => {
  const ties = [
    tie('a', 'b', 'foreign-key'),
    tie('c', 'b', 'crossing'),
    tie('d', 'c', 'crossing'),
    tie('a', 'e', 'crossing-unknown'),
    tie('e', 'rest', 'crossing-unknown'),
  ];
  const all = ['a', 'b', 'c', 'd', 'e', 'rest'];
  const chosen = taken('b', all, ties, 'cutover');
  expect(chosen.subsets).toEqual(['b', 'a', 'c', 'd']);
  expect(chosen.announced.map(({ severity, check, object }) => `${severity} ${check} ${object}`)).toEqual([
    'info subset-carried a',
    'info subset-carried c',
    'info subset-carried d',
    'blocker crossing-unknown a and e',
  ]);
  // A subset that is there already passes nothing on.
  expect(taken('b', ['a', 'b', 'd', 'rest'], ties, 'rollback')).toMatchObject({ subsets: ['b', 'a'] });
  expect(taken('e', all, ties, 'rollback').announced.map(({ severity }) => severity)).toEqual([
    'warning',
    'warning',
  ]);
});

async function open(ties: readonly SubsetTie[] = []): Promise<Stage> {
  const stage = await Stage.open({ subsets: SUBSETS, ties });
  stage.shadow.members = MEMBERS;
  return stage;
}

async function expectLed(stage: Stage, ...sides: readonly [Side, Side, Side]): Promise<void> {
  for (const [index, part] of PARTS.entries()) {
    expect([part, stage.traffic.route(part).side]).toEqual([part, sides[index]]);
    expect([part, await stage.writableAtRest(MEMBERS[part])]).toEqual([part, [sides[index]]]);
  }
}

const asked = (stage: Stage, kind: OperationKind, subset: string) =>
  stage.operate(kind, new AbortController().signal, subset);

test('all that are left, all that have moved, and what follows, each in one operation', async () => {
  await using stage = await open(TIES);
  const last = async (): Promise<number> =>
    Number(
      (await stage.pair.onDestination.query('SELECT last_value FROM public.plain_id_seq')).rows[0].last_value,
    );
  await stage.pair.onSource.query("SELECT setval('public.plain_id_seq', 500)");
  const bound = { user: 'u', applicationName: '', detail: 'news' };
  const pinned = ([1, 2, 2] as const).map((sessionId) => ({
    ...bound,
    sessionId,
    reason: 'listening' as const,
  }));
  const refused = await asked(stage, 'cutover', 'kin');
  expect(refused).toMatchObject({ outcome: 'aborted', subsets: ['kin', 'days'] });
  expect(refused.findings.map(({ check }) => check)).toEqual(['subset-carried', 'crossing-unknown']);
  await expectLed(stage, 'source', 'source', 'source');

  expect(await stage.operate('cutover')).toMatchObject({ outcome: 'done', subsets: PARTS, epoch: 1 });
  await expectLed(stage, 'destination', 'destination', 'destination');
  expect(await last()).toBeGreaterThan(500);
  stage.traffic.prepared = [{ sessions: 3, warm: 3, stale: 0, blockers: [], bound: pinned }];
  const back = await asked(stage, 'rollback', 'days');
  expect(back.findings.find(({ check }) => check === 'session-bound')).toMatchObject({
    severity: 'warning',
    object: '2 sessions',
    message: expect.stringContaining('1 (u): listening, news') as string,
  });
  expect(back).toMatchObject({ outcome: 'done', subsets: ['days', 'kin'], epoch: 2 });
  expect(back.findings.map(({ severity, check }) => [severity, check])).toContainEqual([
    'warning',
    'crossing-unknown',
  ]);
  await expectLed(stage, 'source', 'source', 'destination');
  await stage.restart();
  await expectLed(stage, 'source', 'source', 'destination');
  expect(await stage.operate('cutover')).toMatchObject({
    outcome: 'done',
    subsets: ['days', 'kin'],
    epoch: 3,
  });
  expect((await stage.coordinator.status()).subsets?.map(({ route }) => route.epoch)).toEqual([3, 3, 1]);
  expect(await stage.operate('rollback')).toMatchObject({ outcome: 'done', subsets: PARTS, epoch: 4 });
  await expectLed(stage, 'source', 'source', 'source');
  expect(await stage.operate('rollback').catch(codeOf)).toBe('not-cut-over');
});

describe('a process that dies leaves all of them on one side', () => {
  let stage: Stage;
  beforeAll(async () => {
    stage = await open();
    expect(await asked(stage, 'cutover', 'rest')).toMatchObject({ outcome: 'done' });
  });
  afterAll(() => stage[Symbol.asyncDispose]());

  const points: readonly (readonly [OperationKind, StepPoint, Side])[] = [
    ['cutover', 'after:fence', 'source'],
    ['cutover', 'before:send-commit', 'source'],
    ['cutover', 'after:send-commit', 'destination'],
    ['rollback', 'after:fence', 'destination'],
    ['rollback', 'before:open', 'source'],
  ];
  test.each(points)('in a %s, %s', async (kind, point, side) => {
    stage.observe = (at) => {
      if (at === point) throw new Error('killed');
    };
    // A rollback is of all that the destination leads.
    await expect(stage.operate(kind)).rejects.toBeInstanceOf(StoppedDead);
    stage.observe = undefined;
    await stage.restart();
    await expectLed(stage, side, side, kind === 'rollback' ? side : 'destination');
  });

  test('one that was aborted by somebody else makes the commit of the others impossible', async () => {
    stage.observe = async (at) => {
      if (at !== 'before:commit') return;
      await stage.pair.onDestination.query(
        `UPDATE understudy.operation SET state = 'aborted' WHERE subset = 'kin' AND state = 'verifying'`,
      );
    };
    expect(await stage.operate('cutover')).toMatchObject({
      outcome: 'aborted',
      reason: { code: 'journal-conflict' },
    });
    stage.observe = undefined;
    await expectLed(stage, 'source', 'source', 'source');
  });

  test('an undoing that was begun by somebody else is ended', async () => {
    stage.shadow.recentMismatches = 1;
    expect(await stage.operate('cutover')).toMatchObject({ outcome: 'aborted', subsets: PARTS });
    stage.shadow.recentMismatches = 0;
    await expectLed(stage, 'source', 'source', 'source');
  });
});

test.each(['answer', 'commit'] as const)(
  'in doubt, with the %s lost: what the journal says of one is so for all of them',
  async (loss) => {
    await using stage = await open();
    await using relay = await Relay.open(stage.pair.destination);
    await stage.restart({
      subsets: SUBSETS,
      destination: relay.endpoint,
      observe: (point) => {
        if (point === 'before:send-commit') relay.lose(loss);
      },
    });
    const to = loss === 'answer' ? 'destination' : 'source';
    expect((await stage.operate('cutover')).outcome).toBe(loss === 'answer' ? 'done' : 'aborted');
    await expectLed(stage, to, to, to);
  },
);
