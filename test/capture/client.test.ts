/** The tap, the ring and a real worker thread, from the built program. */
import { Worker } from 'node:worker_threads';
import { afterEach, describe, expect, test } from 'vitest';
import { CaptureClient } from '../../src/capture/client.js';
import { UnderstudyError } from '../../src/core/errors.js';
import type { CaptureSnapshot, StatementTap } from '../../src/core/capture-ports.js';
import { until } from '../support/servers.js';

const ENTRY = new URL('../../dist/capture/worker.js', import.meta.url);
const IDLE = 'I'.charCodeAt(0);
const NONE = Buffer.alloc(0);
const workers: Worker[] = [];
afterEach(async () => {
  await Promise.all(workers.splice(0).map((worker) => worker.terminate()));
});

function capture(ringBytes: number, textBytesMax: number): CaptureClient {
  return new CaptureClient({ ringBytes, textBytesMax, series: null, monotonicMs: () => performance.now() });
}

async function attached(client: CaptureClient): Promise<Worker> {
  const worker = new Worker(ENTRY);
  workers.push(worker);
  await client.attach(worker);
  return worker;
}

function offer(tap: StatementTap, sql: string, failed = false): boolean {
  return tap.offer(7, Buffer.from(sql), 1_500, 2, 100, 200, failed, IDLE, 0, 0, NONE);
}

describe('capture', () => {
  test('a snapshot holds everything offered before it', async () => {
    const client = capture(1 << 20, 1024);
    await attached(client);
    await client.setTables([{ schema: 'shop', name: 'item' }]);
    for (let round = 1; round <= 20; round += 1) {
      for (let n = 0; n < 50; n += 1)
        expect(offer(client.tap, `SELECT * FROM item WHERE id = ${n}`)).toBe(true);
      const snapshot = await client.snapshot();
      expect(snapshot).toMatchObject({
        offered: round * 50,
        dropped: 0,
        unparsed: 0,
        transactions: { committed: round * 50, rolledBack: 0 },
      } satisfies Partial<CaptureSnapshot>);
      expect(snapshot.tables).toMatchObject([
        {
          table: 'shop.item',
          kind: 'select',
          statements: round * 50,
          rows: round * 100,
          bytesToClient: round * 10_000,
        },
      ]);
    }
    client.close();
  });

  test('what was never offered is missing, and is said to be', async () => {
    const client = capture(1 << 16, 128);
    await attached(client);
    offer(client.tap, 'SELECT 1');
    client.tap.skipped?.();
    expect(await client.snapshot()).toMatchObject({ offered: 2, dropped: 1, unrecorded: 1 });
    client.close();
  });

  test('every field of a record arrives as it was offered', async () => {
    const client = capture(1 << 16, 128);
    await attached(client);
    const large = 2 ** 40 + 1;
    client.tap.offer(
      2 ** 31,
      Buffer.from('COPY größe FROM STDIN'),
      2_000_000,
      large,
      large,
      3,
      true,
      IDLE,
      0,
      0,
      NONE,
    );
    expect(await client.snapshot()).toMatchObject({
      transactions: { committed: 0, rolledBack: 1 },
      tables: [
        {
          table: 'größe',
          kind: 'copy',
          errors: 1,
          rows: large,
          bytesToServer: large,
          bytesToClient: 3,
          latencyMs: { count: 1, max: 2_000 },
        },
      ],
    });
    client.close();
  });

  test('the tap copies the text: what happens to the caller’s buffer afterwards does not matter', async () => {
    const client = capture(1 << 16, 128);
    const text = Buffer.from('DELETE FROM a');
    client.tap.offer(1, text, 1, 1, 1, 1, false, IDLE, 0, 0, NONE);
    text.fill('x');
    await attached(client);
    expect(await client.snapshot()).toMatchObject({ tables: [{ table: 'a', kind: 'delete' }] });
    client.close();
  });

  test('without a worker the ring fills, drops are counted, and a worker that comes takes up what is there', async () => {
    const client = capture(1 << 16, 1024);
    let taken = 0;
    while (offer(client.tap, 'UPDATE a SET x = 1')) taken += 1;
    expect(taken).toBeGreaterThan(500);
    for (let n = 0; n < 9; n += 1) expect(offer(client.tap, 'UPDATE a SET x = 1')).toBe(false);
    await expect(client.snapshot()).rejects.toMatchObject({ code: 'internal' });
    await attached(client);
    const snapshot = await client.snapshot();
    expect(snapshot).toMatchObject({ offered: taken + 10, dropped: 10, tables: [{ statements: taken }] });
    expect(offer(client.tap, 'UPDATE a SET x = 1')).toBe(true);
    client.close();
  });

  test('a text beyond the bound is cut, still counted for its tables, and counted as unparsed', async () => {
    const client = capture(1 << 16, 128);
    await attached(client);
    expect(offer(client.tap, `INSERT INTO a VALUES (${'1,'.repeat(100_000)}1)`)).toBe(true);
    expect(await client.snapshot()).toMatchObject({ unparsed: 1, tables: [{ table: 'a', kind: 'insert' }] });
    client.close();
  });

  test('when the worker dies the tap goes on, and another worker goes on from there', async () => {
    const client = capture(1 << 16, 128);
    await client.setTables([{ schema: 's', name: 'a' }]);
    const first = await attached(client);
    offer(client.tap, 'SELECT * FROM a');
    await client.snapshot();
    const gone = new UnderstudyError('internal', 'the thread ended');
    await first.terminate();
    const open = client.snapshot();
    client.detach(gone);
    await expect(open).rejects.toBe(gone);
    expect(offer(client.tap, 'SELECT * FROM a')).toBe(true);
    await attached(client);
    expect(await client.snapshot()).toMatchObject({
      offered: 2,
      dropped: 0,
      tables: [{ table: 's.a', statements: 1 }],
    });
    client.close();
    await expect(client.snapshot()).rejects.toMatchObject({ code: 'cancelled' });
    expect(offer(client.tap, 'SELECT * FROM a')).toBe(true);
  });

  test('an idle worker drains by itself, and answers at once though it sleeps', async () => {
    const client = capture(1 << 16, 128);
    await attached(client);
    // More than the ring holds, in portions that fit: only a worker that drains unasked keeps up.
    for (let portion = 0; portion < 5; portion += 1) {
      let taken = 0;
      await until(
        () => {
          while (taken < 400 && offer(client.tap, 'SELECT 1')) taken += 1;
          return taken === 400;
        },
        { what: 'room in the ring' },
      );
    }
    const snapshot = await client.snapshot();
    expect(snapshot.kinds).toMatchObject([{ kind: 'select', statements: 2_000 }]);
    const { offered, dropped } = snapshot;
    expect(offered - dropped).toBe(2_000);
    client.close();
  });
});
