/** Foreign keys between subsets that are parted: out on both sides meanwhile, and back once they have met. */
import { expect, test } from 'vitest';
import type { Side, SubsetRules } from '../../src/core/ports.js';
import { StoppedDead } from '../../src/cutover/runner.js';
import { readFingerprint } from '../../src/shadow/postgres/fingerprint.js';
import { PINNED_SETTINGS } from '../../src/core/postgres.js';
import { until } from '../support/servers.js';
import { Stage, TABLES, TABLES_SQL } from './stage.js';

const SUBSETS: readonly SubsetRules[] = [
  {
    subset: 'days',
    tables: ['public.plain', 'public.root'],
    foreignKeys: 'unenforced',
    crossing: 'refuse',
  },
];
const isDay = (name: string): boolean => /^(plain|root|leaf_.)$/.test(name);
const MEMBERS = {
  days: TABLES.filter(({ name }) => isDay(name)),
  rest: TABLES.filter(({ name }) => !isDay(name)),
};
const ODD = '"odd ""name"."Tab le"';
const SQL = `${TABLES_SQL}
  ALTER TABLE ${ODD} ADD COLUMN plain bigint, ADD CONSTRAINT "to plain" FOREIGN KEY (plain) REFERENCES public.plain;
  COMMENT ON CONSTRAINT "to plain" ON ${ODD} IS 'why it is there';
  ALTER TABLE public.plain ADD COLUMN up bigint, ADD CONSTRAINT up FOREIGN KEY (up) REFERENCES public.parent NOT VALID;
  ALTER TABLE public.child ADD COLUMN kin bigint CONSTRAINT kin REFERENCES public.parent;
  INSERT INTO public.plain (id) VALUES (1), (2);`;

/** As a control connection reads it. */
async function fingerprint(client: Parameters<typeof readFingerprint>[0]): Promise<object> {
  await client.query(`SET search_path = '${PINNED_SETTINGS['search_path'] ?? ''}'`);
  return await readFingerprint(client);
}

const operate = (stage: Stage, kind: 'cutover' | 'rollback', subset: string) =>
  stage.operate(kind, new AbortController().signal, subset);

test('parted, written to, met again, validated; whatever dies, and whoever is in the way', async () => {
  await using stage = await Stage.open(
    { subsets: SUBSETS, readFingerprint, settings: { fenceTimeoutMs: 300 } },
    SQL,
  );
  stage.shadow.members = MEMBERS;
  const { onSource, onDestination } = stage.pair;
  for (const client of [onSource, onDestination]) await fingerprint(client);
  stage.shadow.built.source = await readFingerprint(onSource);
  stage.shadow.built.destination = await readFingerprint(onDestination);
  const told = async (): Promise<readonly string[]> =>
    ((await stage.coordinator.status()).foreignKeys ?? []).map(
      ({ name, source, destination }) =>
        `${name}: ${source.state}, ${destination.state}${source.violations === undefined ? '' : ` ${source.violations.rows} of ${source.violations.keys}`}`,
    );
  const becomes = async (...wanted: readonly string[]): Promise<void> => {
    let seen: readonly string[] = [];
    await until(async () => (seen = await told()).join() === wanted.join(), {
      what: `the keys to be ${wanted.join('; ')}`,
    }).catch(() => expect(seen).toEqual(wanted));
  };
  const sameCatalogs = async (): Promise<void> => {
    expect(await readFingerprint(onSource)).toEqual(stage.shadow.built.source);
    expect(await readFingerprint(onDestination)).toEqual(stage.shadow.built.destination);
  };
  const refused = async (side: Side, sql: string): Promise<string> =>
    await (side === 'source' ? onSource : onDestination).query(sql).then(
      () => 'written',
      (error: { code: string }) => error.code,
    );
  expect(await told()).toEqual(['to plain: enforced, enforced', 'up: enforced, enforced']);

  // Dead between its commit and the keys: the next process drops them before anything is served.
  stage.observe = (at) => {
    if (at === 'before:switch') throw new Error('killed');
  };
  await expect(operate(stage, 'cutover', 'days')).rejects.toBeInstanceOf(StoppedDead);
  stage.observe = undefined;
  await stage.restart();
  expect(await told()).toEqual(['to plain: unenforced, unenforced', 'up: unenforced, unenforced']);
  await sameCatalogs();
  // Nobody can tell any more whether there is such a row.
  expect(
    await refused('source', `INSERT INTO ${ODD} VALUES (1, 77), (2, 77), (3, 1), (4, 78), (5, NULL)`),
  ).toBe('written');
  expect(await refused('destination', 'INSERT INTO public.plain (id, up) VALUES (3, 9)')).toBe('written');

  // Met on the destination, where no row violates them; the source has been written to meanwhile.
  expect(await operate(stage, 'cutover', 'rest')).toMatchObject({ outcome: 'done' });
  await becomes('to plain: restored, enforced 3 of 2', 'up: enforced, enforced');
  await sameCatalogs();
  expect(await refused('destination', `INSERT INTO ${ODD} VALUES (1, 77)`)).toBe('23503');
  expect(await refused('destination', 'INSERT INTO public.plain (id, up) VALUES (4, 9)')).toBe('23503');
  const comments = await onDestination.query<{ is: string; valid: string }>(
    `SELECT obj_description(oid, 'pg_constraint') AS is, convalidated AS valid FROM pg_constraint WHERE conname IN ('to plain', 'up') ORDER BY conname`,
  );
  expect(comments.rows).toEqual([
    { is: 'why it is there', valid: 't' },
    { is: null, valid: 'f' },
  ]);

  // Parted by a way back, while somebody reads past the proxy: it is done once that is over.
  await onDestination.query(`BEGIN; SELECT FROM public.plain`);
  const back = await operate(stage, 'rollback', 'rest');
  expect(back.findings.map(({ check, side, object }) => `${check} ${side} ${object}`)).toEqual([
    'foreign-key-left destination to plain on odd "name.Tab le',
    'foreign-key-left destination up on public.plain',
  ]);
  expect(await told()).toContain('to plain: unenforced, enforced');
  await onDestination.query('COMMIT');
  await becomes('to plain: unenforced, unenforced', 'up: unenforced, unenforced');
  expect(await refused('source', `DELETE FROM ${ODD} WHERE plain > 70`)).toBe('written');
  expect(await operate(stage, 'rollback', 'days')).toMatchObject({ outcome: 'done', findings: [] });
  await becomes('to plain: enforced, enforced', 'up: enforced, enforced');
  await sameCatalogs();

  // At the end those that rows violate stay as they are, and are named.
  await operate(stage, 'cutover', 'days');
  await onSource.query(`INSERT INTO ${ODD} VALUES (8, 88)`);
  expect(await operate(stage, 'cutover', 'rest')).toMatchObject({ outcome: 'done' });
  const end = {
    removeFence: false,
    stopShadow: () => Promise.resolve(),
    signal: new AbortController().signal,
  };
  expect(await stage.coordinator.finalize(end)).toMatchObject({
    foreignKeys: [
      'source: to plain on "odd ""name"."Tab le" stays NOT VALID: 1 rows refer to 1 keys that are not there',
    ],
  });
  const left = await onDestination.query(`SELECT to_regclass('understudy.unenforced_key') AS records`);
  expect(left.rows).toEqual([{ records: null }]);
});

test('a destination that is given up leaves its keys to the source, which tells what refers to what was lost', async () => {
  const acts = { severity: 'blocker', check: 'subset-foreign-key-acts', side: 'source' } as const;
  const finding = { ...acts, object: 'public.note', message: 'acts', advice: 'Nothing.' };
  await using stage = await Stage.open({ subsets: SUBSETS, findings: [finding] }, SQL);
  stage.shadow.members = MEMBERS;
  const { onSource } = stage.pair;
  // A key that can't be left out keeps its subsets from being parted, not from being switched together.
  expect(await operate(stage, 'cutover', 'days')).toMatchObject({ reason: { code: 'preflight-blocked' } });
  expect(await stage.operate('cutover')).toMatchObject({
    outcome: 'done',
    findings: [{ severity: 'warning' }],
  });
  expect(await stage.operate('rollback')).toMatchObject({ outcome: 'done' });
  await stage.restart({ subsets: SUBSETS });
  expect(await operate(stage, 'cutover', 'days')).toMatchObject({ outcome: 'done' });
  await onSource.query(`INSERT INTO ${ODD} VALUES (1, 77)`);
  const { signal } = new AbortController();
  // Nothing is under way any more when the decision is made.
  const key = async () => (await stage.coordinator.status()).foreignKeys?.[0]?.source;
  await stage.restart();
  await stage.coordinator.abandonDestination('the disk is gone', signal);
  await stage.coordinator.recover(signal);
  await until(async () => (await key())?.violations !== undefined, { what: 'the key to be validated' });
  expect(await key()).toMatchObject({
    state: 'restored',
    violations: { rows: 1, keys: 1 },
    validate: `ALTER TABLE ${ODD} VALIDATE CONSTRAINT "to plain"`,
  });
});
