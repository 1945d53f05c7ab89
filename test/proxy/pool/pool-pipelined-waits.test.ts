/** Whoever shares a connection waits for nobody who is slow, lost or locked. */
import { describe, expect, test } from 'vitest';
import type { CatalogFacts } from '../../../src/proxy/pool/catalog-facts.js';
import { Decision } from '../../../src/proxy/pool/decisions.js';
import { shapeOfRead } from '../../../src/proxy/pool/sql-shape.js';
import { until } from '../../support/servers.js';
import { send, sqlStates, tags } from '../proxy-support.js';
import { pipelinedStage, batch, letter, rowsOf } from './pool-stage.js';

const stage = pipelinedStage();
const { raw, shared } = stage;
const NOTHING_HARMFUL: CatalogFacts = {
  fingerprint: '',
  harmlessFunctions: new Set(),
  otherFunctions: new Set(),
  unsafeWords: new Set(),
  unsafeRowTypes: new Set(),
  unsafeOperators: [],
  obstacle: null,
};

describe('nobody waits for another', () => {
  test('a write that waits for a lock does not hold up the read its holder waits for', async () => {
    await using holder = await raw();
    await using writer = await raw();
    await using reader = await raw();
    await holder.run([send.query('BEGIN'), send.query('UPDATE item SET name = name WHERE id = 1')], 2);
    writer.write(send.query("UPDATE item SET name = 'written' WHERE id = 1"));
    await until(async () => {
      const { rows } = await stage.pair.onSource.query(
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()",
      );
      return rows.length === 1;
    });
    expect(await stage.sharedBy(() => reader.column('SELECT name FROM item WHERE id = 2'))).toBe(1);
    await holder.run([send.query('COMMIT')]);
    await writer.readies(1);
    expect(tags(writer.take())).toEqual(['UPDATE 1']);
  });

  const LONG = 'SELECT count(*) FROM generate_series(1, 4000000) a WHERE a <> 7';
  /** The same but for a literal. */
  const SHORT = LONG.replace('4000000', '10');

  test('what stands behind a long read is sent again elsewhere; the long one is alone from then on', async () => {
    await stage.start({ sharedReadBoundMs: 100 });
    await using slow = await raw();
    await using quick = await raw();
    await stage.timed(SHORT, 'SELECT name FROM item WHERE id = 3');
    slow.write(send.query(LONG));
    await until(() => shared().depth === 1);
    const answered: string[] = [];
    const long = slow.readies(1).then(() => answered.push('long'));
    expect(await quick.column('SELECT name FROM item WHERE id = 3')).toEqual(['item 3']);
    answered.push('quick');
    await long;
    expect(answered).toEqual(['quick', 'long']);
    expect(shared().sentAgain).toBeGreaterThan(0);
    expect(rowsOf(slow.take())).toEqual(['3999999']);
    const again = await stage.sharedBy(() => slow.column(LONG.replace('7', '8')));
    expect(again).toBe(0);
    expect(await quick.column('SELECT 5')).toEqual(['5']);
  });

  test('a cancel hits its own statement and nobody else’s', async () => {
    await using slow = await raw();
    await using queued = await raw();
    await using other = await raw();
    await stage.timed(SHORT, 'SELECT 4 AS four');
    slow.write(send.query(LONG));
    await until(() => shared().depth === 1);
    queued.write(send.query('SELECT 4 AS four'));
    other.write(send.query('SELECT 5 AS four'));
    await until(() => shared().depth === 3);
    await queued.cancel();
    await queued.readies(1);
    expect(sqlStates(queued.take())).toEqual(['57014']);
    await slow.cancel();
    await Promise.all([slow.readies(1), other.readies(1)]);
    expect(sqlStates(slow.take())).toEqual(['57014']);
    expect(rowsOf(other.take())).toEqual(['5']);
    await stage.sharing(queued);
  });

  test('a lost connection gives its reads another chance', async () => {
    await using slow = await raw();
    await using other = await raw();
    await stage.timed(SHORT, 'SELECT 6 AS six');
    slow.write(send.query(LONG));
    await until(() => shared().depth === 1);
    other.write(send.query('SELECT 6 AS six'));
    await until(() => shared().depth === 2);
    await stage.pair.onSource.query(
      `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid()`,
    );
    await Promise.all([slow.readies(1), other.readies(1)]);
    expect(rowsOf(other.take())).toEqual(['6']);
    expect(rowsOf(slow.take())).toEqual(['3999999']);
    await stage.sharing(other);
  });

  test('a client that does not read keeps its connection, and holds up nobody', async () => {
    await using lazy = await raw();
    await using other = await raw();
    lazy.socket.pause();
    lazy.write(send.query('SELECT repeat(chr(97 + n % 26), 100000) FROM generate_series(1, 500) n'));
    await until(() => shared().depth === 1);
    for (let round = 0; round < 5; round++) {
      expect(await other.column('SELECT name FROM item WHERE id = 9')).toEqual(['item 9']);
    }
    lazy.socket.resume();
    await lazy.readies(1);
    // What waited was not written over meanwhile.
    const rows = rowsOf(lazy.take());
    expect(rows.map((row) => row?.[0])).toEqual(Array.from({ length: 500 }, (_, n) => letter(n + 1)));
    expect(rows.every((row) => row === row?.[0]?.repeat(100_000))).toBe(true);
    await until(() => shared().depth === 0);
    await stage.sharing(other);
  });

  test('a client that leaves in the middle takes nothing with it', async () => {
    const leaver = await raw();
    await using other = await raw();
    await stage.timed(SHORT, 'SELECT 8 AS eight');
    leaver.write(send.query(LONG));
    await until(() => shared().depth === 1);
    other.write(send.query('SELECT 8 AS eight'));
    await leaver[Symbol.asyncDispose]();
    await other.readies(1);
    expect(rowsOf(other.take())).toEqual(['8']);
  });
});

describe('how long a text takes', () => {
  test('a text that takes longer than the bound has a connection of its own from its second run on', async () => {
    await stage.start({ sharedReadBoundMs: 10 });
    await using client = await raw();
    const slow = 'SELECT count(*) FROM generate_series(1, 1000000) a WHERE a <> $1';
    await client.run(batch(slow, '1'));
    await stage.sharing(client);
    for (let round = 0; round < 3; round++)
      expect(await stage.sharedBy(() => client.run(batch(slow, '1')))).toBe(0);
  });

  test('one that mostly takes a good part of it has too, and comes back once it is short', () => {
    const decision = new Decision(0, [], null, false, shapeOfRead('SELECT 1'));
    const facts = { ...NOTHING_HARMFUL };
    const shared = (tookMs: number, nowMs: number): void => decision.ranShared(tookMs, 5, nowMs, 1000);
    expect(decision.timed).toBe(false);
    for (const tookMs of [9, 1, 9, 9]) shared(tookMs, 0);
    expect(decision.mayShare(facts, 0)).toBe(true);
    shared(9, 0);
    expect(decision.mayShare(facts, 999)).toBe(false);
    decision.ranAlone(50, 5);
    expect(decision.mayShare(facts, 999)).toBe(false);
    decision.ranAlone(1, 5);
    decision.ranAlone(1, 5);
    expect(decision.mayShare(facts, 999)).toBe(true);
    for (let run = 0; run < 3; run++) shared(9, 0);
    expect(decision.mayShare(facts, 999)).toBe(false);
    // Tried again after its time, as if never seen.
    expect(decision.mayShare(facts, 1000)).toBe(true);
    expect(decision.timed).toBe(false);
  });

  test('nothing is sent behind a text that was never timed', async () => {
    await using client = await raw();
    await using other = await raw();
    await stage.timed('SELECT 3 AS three');
    client.write(send.query('SELECT count(*) FROM generate_series(1, 3000000) never WHERE never <> 7'));
    await until(() => shared().depth === 1);
    expect(await other.column('SELECT 3 AS three')).toEqual(['3']);
    expect(shared().sentAgain).toBe(0);
    await client.readies(1);
  });
});
