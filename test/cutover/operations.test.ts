/** There, back, and there again: what happens, in which order, and what is reported. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { UnderstudyError } from '../../src/core/errors.js';
import type { OperationReport } from '../../src/core/ports.js';
import { Stage, TABLES } from './stage.js';

let stage: Stage;

beforeAll(async () => {
  stage = await Stage.open();
  await stage.pair.onSource.query(`INSERT INTO public.plain SELECT FROM generate_series(1, 100)`);
});
afterAll(async () => {
  await stage[Symbol.asyncDispose]();
});

const STEPS = [
  'preflight',
  'prepare',
  'hold',
  'fence',
  'catch-up',
  'verify',
  'commit',
  'open',
  'switch',
  'release',
];

async function nextId(side: 'onSource' | 'onDestination'): Promise<number> {
  const { rows } = await stage.pair[side].query<{ id: string }>(
    'INSERT INTO public.plain DEFAULT VALUES RETURNING id',
  );
  return Number(rows[0]?.id);
}

function expectReport(report: OperationReport, epoch: number): void {
  expect(report).toMatchObject({ outcome: 'done', epoch, moved: 3, closed: 0, findings: [] });
  expect(Object.keys(report.steps)).toEqual(STEPS);
  expect(report.reason).toBeUndefined();
  const steps = stage.events.flatMap((event) =>
    event.event === 'step' && event.phase === 'start' ? [event.step] : [],
  );
  expect(steps).toEqual(STEPS);
  expect(stage.events.at(-1)).toEqual({ event: 'report', report });
  expect(stage.traffic.calls).toEqual(['prepare', 'hold', 'switchTo', 'release']);
  stage.events.length = 0;
  stage.traffic.calls.length = 0;
  stage.shadow.calls.length = 0;
}

test('before anything, the source alone is writable', async () => {
  expect(await stage.writableAtRest()).toEqual(['source']);
  expect(await stage.coordinator.status()).toMatchObject({
    route: { side: 'source', epoch: 0 },
    barriers: { source: 'lowered', destination: 'raised' },
    journal: 'reachable',
    running: null,
    last: null,
    rollback: { possible: false },
  });
});

test('a cutover', async () => {
  const report = await stage.operate('cutover');
  expect(stage.shadow.calls).toEqual([
    'prepareReverse',
    'analyze destination',
    'verify',
    'mark forward',
    'verifyRecent forward',
  ]);
  expectReport(report, 1);
  expect(await stage.writableAtRest()).toEqual(['destination']);
  expect(await nextId('onDestination')).toBe(100 + 32 + 1);
  expect(await stage.coordinator.status()).toMatchObject({
    route: { side: 'destination', epoch: 1 },
    barriers: { source: 'raised', destination: 'lowered' },
    last: { id: report.id, kind: 'cutover', state: 'done', report: { outcome: 'done' } },
    rollback: { possible: true, lossless: true },
  });
});

test('a rollback', async () => {
  // Not measured, as it could not be: nobody knows then whether clients would wait too long.
  stage.shadow.exactMs = null;
  await expect(stage.operate('rollback')).resolves.toMatchObject({
    outcome: 'aborted',
    reason: { code: 'preflight-blocked' },
  });
  stage.shadow.exactMs = undefined;
  stage.shadow.calls.length = 0;
  stage.traffic.calls.length = 0;
  stage.events.length = 0;
  expect(stage.shadow.measured.at(-1)).toMatchObject({ direction: 'reverse', subsets: ['all'] });
  const report = await stage.operate('rollback');
  // Verified not long ago: what changed since is compared behind the gate.
  expect(stage.shadow.calls).toEqual(['analyze source', 'mark reverse', 'verifyRecent reverse']);
  expectReport(report, 2);
  expect(await stage.writableAtRest()).toEqual(['source']);
  expect(await nextId('onSource')).toBe(133 + 32 + 1);
});

test('a cutover again; whoever asked for it may take that back after preflight, before a client waits', async () => {
  const report = await stage.coordinator.cutover({
    signal: new AbortController().signal,
    onEvent: () => undefined,
    confirm: (subsets) => Promise.reject(new UnderstudyError('cancelled', `not ${subsets.join(', ')}`)),
  });
  expect(report).toMatchObject({ outcome: 'aborted', reason: { code: 'cancelled', message: 'not all' } });
  expect(stage.traffic.calls).toEqual(['prepare', 'discardWarm']);
  expect(await stage.writableAtRest()).toEqual(['source']);
  stage.traffic.calls.length = 0;

  expectReport(await stage.operate('cutover'), 3);
  expect(await stage.writableAtRest()).toEqual(['destination']);
});

test('the journal tells the story, and every state was written down before it was acted on', async () => {
  const events = await stage.pair.onDestination.query<{ state: string }>(
    `SELECT e.state FROM understudy.event e JOIN understudy.operation o ON o.id = e.operation
      WHERE o.epoch = 0 ORDER BY e.number`,
  );
  expect(events.rows.map((row) => row.state)).toEqual([
    'preflight',
    'holding',
    'fencing',
    'catching-up',
    'verifying',
    'committed',
    'switching',
    'releasing',
    'done',
  ]);
});

test('the messages in the logs say who leads, in the transactions that made it so', async () => {
  const slot = `s_${stage.pair.source.database}`;
  for (const client of [stage.pair.onSource, stage.pair.onDestination]) {
    await client.query('CREATE PUBLICATION p FOR TABLE public.plain');
    await client.query('SELECT pg_create_logical_replication_slot($1, $2)', [slot, 'pgoutput']);
  }
  const back = await stage.operate('rollback');
  const there = await stage.operate('cutover');
  const read = async (client: Stage['pair']['onSource']): Promise<string[]> => {
    const { rows } = await client.query<{ data: string }>(
      `SELECT encode(data, 'escape') AS data FROM pg_logical_slot_get_binary_changes(
         $1, NULL, NULL, 'proto_version', '1', 'publication_names', 'p', 'messages', 'true')`,
      [slot],
    );
    // Before the text stands its length, which may be the code of a brace.
    return rows.flatMap((row) => /\{"t".*\}/.exec(row.data)?.[0] ?? []);
  };
  const onSource = await read(stage.pair.onSource);
  const onDestination = await read(stage.pair.onDestination);
  expect(onSource.map((text) => JSON.parse(text) as object)).toMatchObject([
    { t: 'route', subset: 'all', epoch: back.epoch, side: 'source' },
    { t: 'mark', id: expect.stringContaining(there.id) as string },
  ]);
  expect(onDestination.map((text) => JSON.parse(text) as object)).toMatchObject([
    { t: 'mark', id: expect.stringContaining(back.id) as string },
    { t: 'route', subset: 'all', epoch: back.epoch, side: 'source' },
    { t: 'route', subset: 'all', epoch: there.epoch, side: 'destination' },
  ]);
  for (const client of [stage.pair.onSource, stage.pair.onDestination]) {
    await client.query('SELECT pg_drop_replication_slot($1)', [slot]);
  }
});

test('a restart after it finds nothing to do', async () => {
  expect(await stage.restart()).toMatchObject({ route: { side: 'destination' }, action: 'none' });
  await stage.coordinator.installBarriers(TABLES);
  expect(await stage.writableAtRest()).toEqual(['destination']);
});

test('closing while an operation is before its commit undoes it', async () => {
  let closing: Promise<void> | undefined;
  stage.shadow.onMark = () => {
    closing = stage.coordinator.close();
    return new Promise(() => undefined);
  };
  expect(await stage.operate('rollback')).toMatchObject({
    outcome: 'aborted',
    reason: { code: 'cancelled' },
  });
  await closing;
  stage.shadow.onMark = undefined;
  expect(await stage.writableAtRest()).toEqual(['destination']);
});

test('triggers that would fire for the shadow’s writes are on exactly while the destination leads', async () => {
  await using other = await Stage.open();
  const { onDestination } = other.pair;
  await onDestination.query(`
    CREATE FUNCTION public.noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    CREATE TRIGGER always BEFORE INSERT ON public.plain FOR EACH ROW EXECUTE FUNCTION public.noted();
    ALTER TABLE public.plain DISABLE TRIGGER always;
    CREATE TABLE understudy.deferred_trigger (enable_sql text PRIMARY KEY, disable_sql text NOT NULL);
    INSERT INTO understudy.deferred_trigger VALUES
      ('ALTER TABLE public.plain ENABLE ALWAYS TRIGGER always', 'ALTER TABLE public.plain DISABLE TRIGGER always')`);
  const state = async (): Promise<string | undefined> => {
    const { rows } = await onDestination.query<{ state: string }>(
      `SELECT tgenabled AS state FROM pg_trigger WHERE tgname = 'always'`,
    );
    return rows[0]?.state;
  };
  other.shadow.recentMismatches = 1;
  expect((await other.operate('cutover')).outcome).toBe('aborted');
  expect(await state()).toBe('D');
  other.shadow.recentMismatches = 0;
  await other.operate('cutover');
  expect(await state()).toBe('A');
  other.shadow.recentMismatches = 1;
  expect((await other.operate('rollback')).outcome).toBe('aborted');
  expect(await state()).toBe('A');
  other.shadow.recentMismatches = 0;
  await other.operate('rollback');
  expect(await state()).toBe('D');
});

test('behind the closed gate nothing is asked that preflight could ask', async () => {
  await using other = await Stage.open();
  const gates: string[] = [];
  const { shadow, traffic } = other;
  const built = shadow.builtFingerprint.bind(shadow);
  shadow.builtFingerprint = (side) => {
    gates.push(traffic.gate);
    return built(side);
  };
  expect(await other.operate('cutover')).toMatchObject({ outcome: 'done' });
  expect(gates).toEqual(['open', 'open']);
});

test('what could not be compared behind the gate is said, and does not stop the switch', async () => {
  await using other = await Stage.open({});
  other.shadow.recentIncomplete = true;
  const { outcome, findings } = await other.operate('cutover');
  expect(outcome).toBe('done');
  expect(findings.map(({ check, severity }) => [check, severity])).toEqual([['verify-partial', 'info']]);
});
