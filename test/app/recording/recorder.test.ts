/** The file: what is lost under load or torn off by a crash is said, and never becomes half a transaction. */
import { readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { RecordingFile, chooseDatabase } from '../../../src/app/replay/recording-file.js';
import { encodeQuery, encodeSync, encodeParse } from '../../../src/wire/postgres/messages.js';
import { BLOCK_BYTES, PIECE_BYTES_MAX, type RecordingRecord } from '../../../src/wire/recording.js';
import { newRecorder, scan, temporaryFolder } from './support.js';

const IDLE = 0x49;
const IN_TRANSACTION = 0x54;
const WHO = new Map([
  ['user', 'somebody'],
  ['database', 'shop'],
]);

async function recordsOf(file: string): Promise<{ records: RecordingRecord[]; tornBytes: number }> {
  await using recording = await RecordingFile.open(file);
  const records: RecordingRecord[] = [];
  for await (const record of recording.records()) records.push(record);
  return { records, tornBytes: recording.tornBytes };
}

test('what is written is read again: bytes, times, answers awaited, outcomes', async () => {
  await using folder = await temporaryFolder();
  const file = join(folder.path, 'a.rec');
  let now = 5_000;
  const recorder = await newRecorder(file, { nowMs: () => now });
  recorder.opened(7, WHO);
  now += 1.5;
  recorder.sent(7, encodeQuery('SELECT 1'), 1, 0, IDLE);
  const offered: unknown[] = [];
  const tap = recorder.tap({ offer: (...all) => offered.push(all) > 0 });
  tap.offer(7, Buffer.from('SELECT 1'), 250, 3, 14, 60, true, IDLE, 0, 0x3234, Buffer.alloc(0));
  now += 1000;
  recorder.sent(7, encodeQuery('SELECT 2'), 2, 1, IN_TRANSACTION);
  recorder.sent(7, encodeQuery('SELECT 3'), 3, 1, IN_TRANSACTION);
  const long = Buffer.alloc(PIECE_BYTES_MAX + 10, 'x');
  recorder.sent(7, long, 3, 3, IDLE);
  recorder.closed(7);
  expect(await recorder.close()).toMatchObject({ sessions: 1, sessionsLost: 0, bytesDropped: 0 });
  const { records, tornBytes } = await recordsOf(file);
  expect(tornBytes).toBe(0);
  expect(offered).toHaveLength(1);
  expect(records).toMatchObject([
    { type: 'opened', session: 7, micros: 0, parameters: { user: 'somebody', database: 'shop' } },
    { type: 'sent', micros: 1500, inFlight: 0, status: IDLE, bytes: encodeQuery('SELECT 1') },
    { type: 'outcome', outcome: { durationMicros: 250, rows: 3, errorClass: 0x3234 } },
    { type: 'sent', micros: 1_001_500, inFlight: 0, status: IN_TRANSACTION },
    { type: 'sent', inFlight: 1 },
    { type: 'sent', bytes: long.subarray(0, PIECE_BYTES_MAX) },
    { type: 'sent', bytes: long.subarray(PIECE_BYTES_MAX) },
    { type: 'closed' },
    { type: 'end' },
  ]);
});

test('a file cut anywhere: whole blocks are read, the torn bytes are counted', async () => {
  await using folder = await temporaryFolder();
  const file = join(folder.path, 'torn.rec');
  const recorder = await newRecorder(file);
  recorder.opened(1, WHO);
  for (let at = 0; at < 12; at++) recorder.sent(1, Buffer.alloc(60_000, at), at, at, IDLE);
  recorder.closed(1);
  await recorder.close();
  const whole = await readFile(file);
  const all = (await recordsOf(file)).records.length;
  let before = 0;
  for (let cut = 200; cut < whole.length; cut += 40_961) {
    await writeFile(file, whole.subarray(0, cut));
    const { records, tornBytes } = await recordsOf(file);
    expect(records.length).toBeGreaterThanOrEqual(before);
    expect(records.length).toBeLessThan(all);
    expect(tornBytes).toBeLessThan(BLOCK_BYTES);
    expect(await scan(file)).toMatchObject({
      ended: false,
      incompleteSessions: records.length === 0 ? 0 : 1,
    });
    before = records.length;
  }
  // A flipped bit ends the reading there, too.
  const damaged = Buffer.from(whole);
  const middle = Math.floor(whole.length / 2);
  damaged[middle] = (damaged[middle] ?? 0) ^ 1;
  await writeFile(file, damaged);
  expect((await recordsOf(file)).tornBytes).toBeGreaterThan(0);
});

test('a session whose end is missing is cut in front of what was not answered or not committed', async () => {
  await using folder = await temporaryFolder();
  const pieces: readonly (readonly [Buffer, sent: number, answered: number, status: number])[] = [
    [encodeQuery('SELECT 1'), 1, 0, IDLE],
    [encodeQuery('BEGIN'), 2, 1, IDLE],
    [encodeQuery('UPDATE'), 3, 2, IN_TRANSACTION],
    [encodeQuery('COMMIT'), 4, 3, IN_TRANSACTION],
    // A pipeline in two pieces: the border between them is no moment of rest.
    [encodeParse('', 'SELECT $1', []), 4, 4, IDLE],
    [encodeSync(), 5, 4, IDLE],
    [encodeQuery('SELECT 2').subarray(0, 9), 6, 5, IDLE],
    [encodeQuery('SELECT 2').subarray(9), 6, 5, IDLE],
  ];
  const kept: number[] = [];
  for (let count = 1; count <= pieces.length; count++) {
    const file = join(folder.path, `${count}.rec`);
    const recorder = await newRecorder(file);
    recorder.opened(1, WHO);
    for (const [bytes, ...rest] of pieces.slice(0, count)) recorder.sent(1, bytes, ...rest);
    await recorder.close();
    kept.push((await scan(file)).sessions.get(1)?.pieces ?? -1);
  }
  expect(kept).toEqual([0, 1, 1, 1, 4, 4, 6, 6]);
});

test('under more load than the disk takes sessions are lost and named, and what is recorded stays right', async () => {
  await using folder = await temporaryFolder();
  const file = join(folder.path, 'shed.rec');
  const recorder = await newRecorder(file, { queueBytesMax: BLOCK_BYTES });
  recorder.opened(1, WHO);
  recorder.opened(2, WHO);
  recorder.sent(2, encodeQuery('SELECT 2'), 1, 0, IDLE);
  // Without a turn of the event loop nothing reaches the disk: the queue must fill.
  for (let at = 0; at < 40; at++) recorder.sent(1, encodeQuery('x'.repeat(50_000)), at + 1, at, IDLE);
  recorder.sent(2, encodeQuery('SELECT 3'), 2, 1, IDLE);
  recorder.closed(1);
  recorder.closed(2);
  const status = await recorder.close();
  expect(status.sessionsLost).toBe(1);
  expect(status.bytesDropped).toBeGreaterThan(1_000_000);
  const scanned = await scan(file);
  expect(scanned).toMatchObject({ incompleteSessions: 1, tornBytes: 0, ended: true });
  expect(scanned.sessions.get(2)).toMatchObject({ complete: true, pieces: 2 });
  const { complete, pieces } = scanned.sessions.get(1) ?? { complete: true, pieces: 0 };
  expect(complete).toBe(false);
  expect(pieces).toBeGreaterThan(0);
  expect(pieces).toBeLessThan(40);
});

test('a recording ends at its size; traffic goes on, and sessions then open are cut', async () => {
  await using folder = await temporaryFolder();
  const file = join(folder.path, 'full.rec');
  const recorder = await newRecorder(file, { bytesMax: BLOCK_BYTES });
  recorder.opened(1, WHO);
  for (let at = 0; at < 40; at++) recorder.sent(1, encodeQuery('x'.repeat(50_000)), at + 1, at, IDLE);
  recorder.closed(1);
  expect(recorder.status.state).toBe('full');
  const { bytes } = await recorder.close();
  expect(bytes).toBeLessThan(3 * BLOCK_BYTES);
  expect(await scan(file)).toMatchObject({ incompleteSessions: 1, ended: false });
});

test('a file that is there is never written over; one that is no recording is refused', async () => {
  await using folder = await temporaryFolder();
  const file = join(folder.path, 'there');
  await writeFile(file, 'something');
  await expect(newRecorder(file)).rejects.toMatchObject({ code: 'config-invalid' });
  await expect(RecordingFile.open(file)).rejects.toMatchObject({ code: 'recording-unreadable' });
  await expect(RecordingFile.open(join(folder.path, 'absent'))).rejects.toMatchObject({
    code: 'recording-unreadable',
  });
  const good = join(folder.path, 'good.rec');
  await (await newRecorder(good)).close();
  await truncate(good, 20);
  await expect(RecordingFile.open(good)).rejects.toMatchObject({ code: 'recording-unreadable' });
});

test('of several databases one is replayed, by name', async () => {
  await using folder = await temporaryFolder();
  const file = join(folder.path, 'several.rec');
  const recorder = await newRecorder(file);
  for (const [id, database] of [
    [1, 'shop'],
    [2, 'archive'],
  ] as const) {
    recorder.opened(id, new Map([['database', database]]));
    recorder.sent(id, encodeQuery('SELECT 1'), 1, 0, IDLE);
    recorder.closed(id);
  }
  await recorder.close();
  const scanned = await scan(file);
  expect(() => chooseDatabase(scanned, undefined)).toThrow(/shop, archive/);
  expect(() => chooseDatabase(scanned, 'other')).toThrow(/shop, archive/);
  chooseDatabase(scanned, 'archive');
  expect([...scanned.sessions.values()].map(({ pieces }) => pieces)).toEqual([0, 1]);
});
