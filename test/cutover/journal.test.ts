import { afterAll, beforeAll, expect, test } from 'vitest';
import type { OperationKind, Side } from '../../src/core/ports.js';
import {
  abortOperation,
  assertCommitted,
  beginOperation,
  commitSql,
  createJournal,
  finalizeRoute,
  finishOperation,
  moveOperation,
  readLastOperation,
  readOpenOperation,
  readOperation,
  readRoute,
  type OperationKey,
} from '../../src/cutover/journal.js';
import { Registration, readOtherProxies } from '../../src/cutover/registration.js';
import { Connections, type Session } from '../../src/cutover/session.js';
import { silentLog } from '../../src/core/log.js';
import { systemClock } from '../../src/core/clock.js';
import { databasePair, until, type DatabasePair } from '../support/servers.js';

let pair: DatabasePair;
let connections: Connections;
let one: Session;
let other: Session;
let subsets = 0;

beforeAll(async () => {
  pair = await databasePair();
  connections = new Connections(pair, 3000);
  one = await connections.open('destination', 'one');
  other = await connections.open('destination', 'other');
});
afterAll(async () => {
  connections.destroy();
  await pair[Symbol.asyncDispose]();
});

/** A subset of its own, with an operation that has come to `verifying`. */
async function verifying(): Promise<{ subset: string; key: OperationKey }> {
  const subset = `s${subsets++}`;
  await createJournal(one, subset, 0);
  const key = await begin(subset, 0, 'cutover', 'source');
  await moveOperation(one, [{ subset, key }], 'preflight', 'verifying');
  return { subset, key };
}

async function begin(subset: string, epoch: number, kind: OperationKind, from: Side): Promise<OperationKey> {
  const key = { id: `${subset}-${kind}-${epoch}`, attempt: 'nonce', epoch };
  await beginOperation(one, [{ subset, key }], { kind, from, proxy: 'p' });
  return key;
}

/** All of the commit but COMMIT. */
async function stageCommit(
  session: Session,
  key: OperationKey,
  subset: string,
  to: Side = 'destination',
): Promise<void> {
  const answers = await session.batch(['BEGIN', ...commitSql([{ subset, key }], to)]);
  assertCommitted(
    [{ subset, key }],
    answers.slice(1).map((answer) => answer.count),
  );
}

test('once an abort has committed, a commit of the same operation fails, however late it comes', async () => {
  const { subset, key } = await verifying();
  expect(await abortOperation(other, key, 'successor')).toBe('aborted');
  await expect(stageCommit(one, key, subset)).rejects.toMatchObject({ code: 'journal-conflict' });
  await one.batch(['ROLLBACK']);
  expect(await readRoute(one, subset)).toMatchObject({ side: 'source', epoch: 0 });
});

test('an abort waits for a commit under way, and reports what became of it', async () => {
  const { subset, key } = await verifying();
  await stageCommit(one, key, subset);
  const aborting = abortOperation(other, key, 'successor');
  await waitsForLock(other);
  await one.batch(['COMMIT']);
  expect(await aborting).toBe('committed');
  expect(await readRoute(one, subset)).toMatchObject({ side: 'destination', epoch: 1 });

  const second = await verifying();
  await stageCommit(one, second.key, second.subset);
  const abortingSecond = abortOperation(other, second.key, 'successor');
  await waitsForLock(other);
  await one.batch(['ROLLBACK']);
  expect(await abortingSecond).toBe('aborted');
});

async function waitsForLock(session: Session): Promise<void> {
  const pid = await pair.onDestination.query<{ pid: string }>(
    `SELECT pid FROM pg_stat_activity WHERE application_name = 'understudy other' AND datname = current_database()`,
  );
  expect(session.dead).toBe(false);
  await until(async () => {
    const waiting = await pair.onDestination.query('SELECT FROM pg_locks WHERE pid = $1 AND NOT granted', [
      pid.rows[0]?.pid,
    ]);
    return waiting.rowCount === 1;
  });
}

test.each([
  ['another attempt', { attempt: 'forged' }],
  ['another epoch', { epoch: 7 }],
  ['another operation', { id: 'nobody' }],
] as const)('a change by %s hits nothing', async (_what, forged) => {
  const { subset, key } = await verifying();
  const wrong = { ...key, ...forged };
  await expect(moveOperation(one, [{ subset, key: wrong }], 'verifying', 'committed')).rejects.toMatchObject({
    code: 'journal-conflict',
  });
  await expect(stageCommit(one, wrong, subset)).rejects.toMatchObject({ code: 'journal-conflict' });
  await one.batch(['ROLLBACK']);
  expect(await readOperation(one, key.id)).toMatchObject({ state: 'verifying' });
  await abortOperation(one, key, 'end');
});

test('a state is left only by who knows it', async () => {
  const { subset, key } = await verifying();
  await expect(moveOperation(one, [{ subset, key }], 'fencing', 'catching-up')).rejects.toMatchObject({
    code: 'journal-conflict',
  });
  expect(await finishOperation(one, key, {})).toBe(false);
  await abortOperation(one, key, 'end');
});

test('a second operation is refused while one is open, and one of a stale epoch always', async () => {
  const { subset, key } = await verifying();
  await expect(begin(subset, 0, 'rollback', 'source')).rejects.toMatchObject({ code: 'busy' });
  await abortOperation(one, key, 'end');
  await expect(begin(subset, 5, 'cutover', 'source')).rejects.toMatchObject({ code: 'journal-conflict' });
  await expect(begin(subset, 0, 'rollback', 'destination')).rejects.toMatchObject({
    code: 'journal-conflict',
  });
  expect(await readOpenOperation(one, subset)).toBeNull();
});

test('there and back: the route moves one epoch at a time', async () => {
  const { subset, key } = await verifying();
  await stageCommit(one, key, subset);
  await one.batch(['COMMIT']);
  expect(await finishOperation(one, key, { reason: 'recovered' })).toBe(true);
  const back = await begin(subset, 1, 'rollback', 'destination');
  await moveOperation(one, [{ subset, key: back }], 'preflight', 'verifying');
  await stageCommit(one, back, subset, 'source');
  await one.batch(['COMMIT']);
  expect(await readRoute(one, subset)).toMatchObject({ side: 'source', epoch: 2, operation: back.id });
  expect(await readLastOperation(one, subset)).toMatchObject({ id: back.id, state: 'committed' });
});

test('finalize is refused while the source leads or an operation is open, and forbids the next one', async () => {
  const { subset, key } = await verifying();
  await expect(finalizeRoute(one, subset)).rejects.toMatchObject({ code: 'busy' });
  await abortOperation(one, key, 'end');
  await expect(finalizeRoute(one, subset)).rejects.toMatchObject({ code: 'not-cut-over' });
  const next = { ...(await begin2(subset)) };
  await stageCommit(one, next, subset);
  await one.batch(['COMMIT']);
  await finishOperation(one, next, {});
  expect(await finalizeRoute(one, subset)).toBe(1);
  expect(await finalizeRoute(one, subset)).toBe(1);
  await expect(begin(subset, 1, 'rollback', 'destination')).rejects.toMatchObject({
    code: 'journal-conflict',
  });
});

async function begin2(subset: string): Promise<OperationKey> {
  const key = { id: `${subset}-second`, attempt: 'nonce', epoch: 0 };
  const members = [{ subset, key }];
  await beginOperation(one, members, { kind: 'cutover', from: 'source', proxy: 'p' });
  await moveOperation(one, members, 'preflight', 'verifying');
  return key;
}

test('a proxy is seen as alive while it lives, is registered again when cut off, and gone when it dies', async () => {
  await createJournal(one, 'live', 0);
  const mine = new Connections(pair, 3000);
  let returned = 0;
  let registered = 0;
  const registration = new Registration({
    proxyId: 'mine',
    connections: mine,
    clock: systemClock,
    log: silentLog,
    answerTimeoutMs: 3000,
    onReturn: () => {
      returned++;
      return Promise.resolve();
    },
    onRegistered: () => registered++,
  });
  await registration.register();
  await registration.register();
  expect(registered).toBe(1);
  expect(await readOtherProxies(one, 'somebody')).toMatchObject([{ id: 'mine' }]);
  expect(await readOtherProxies(one, 'mine')).toEqual([]);
  await pair.onDestination.query(
    `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
      WHERE application_name = 'understudy proxy' AND datname = current_database()`,
  );
  await until(async () => returned === 1 && (await readOtherProxies(one, 'somebody')).length === 1);
  expect(registered).toBe(2);
  registration.destroy();
  await until(async () => (await readOtherProxies(one, 'somebody')).length === 0);
});
