/**
 * The conversations of the differential test, held through a pool: what is said must be the same, but for what
 * docs/pooling.md says is not.
 *
 * By default those that have most to do with what a pool does, in `pipelined`, which has all that `transaction` has;
 * with UNDERSTUDY_DIFFERENTIAL=full all of them, in both modes.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { POOL_DEFAULTS } from '../../src/proxy/pool/pool-settings.js';
import { QueryVerifiers } from '../../src/proxy/login/verifiers.js';
import { databasePair, type DatabasePair } from '../support/servers.js';
import { Seat, type Conversation, type Cut, type Played } from './differential/conversation.js';
import { FILL, SCHEMA, TOPICS, createPlayer, serving } from './differential/setting.js';
import { startProxy, type RunningProxy } from './proxy-support.js';

const FULL = process.env['UNDERSTUDY_DIFFERENTIAL'] === 'full';
const MODES = FULL ? (['transaction', 'pipelined'] as const) : (['pipelined'] as const);
const CHOSEN: readonly string[] = ['simple', 'extended', 'transactions', 'state'];

/** Conversations that differ, with the reason. */
const DIFFERENT: Readonly<Record<string, string>> = {
  'a session that idles too long is ended by the server': 'an idle client has no connection',
  'a backend that is ended while idle': 'an idle client has no connection',
  'a statement prepared by messages, used in SQL': 'at the server it has another name',
};
/** Ended by the proxy in the server's words, but for the file, line and routine. */
const ENDED_HERE = /^an unknown message type|^a password when nobody asked/;

describe.each(MODES)('in %s mode', (poolMode) => {
  let pair: DatabasePair;
  let proxy: RunningProxy;
  let verifiers: QueryVerifiers;
  let direct: Seat;
  let pooled: Seat;

  beforeAll(async () => {
    pair = await databasePair();
    const { source } = pair;
    const control = pair.onSource;
    await control.query("SET search_path = 'public'");
    await control.query(SCHEMA);
    await control.query(FILL);
    await createPlayer(control);
    verifiers = new QueryVerifiers({
      current: () => ({ side: 'source', endpoint: source }),
      connectTimeoutMs: 10_000,
      queryTimeoutMs: 10_000,
      waitingMax: 10,
    });
    const pool = { ...POOL_DEFAULTS, poolMode, poolSizeMax: 1, sharedConnections: 1 };
    proxy = await startProxy(serving(source, source.port), { pool }, { verifiers });
    const table = { port: source.port, database: source.database, control };
    direct = new Seat(table);
    pooled = new Seat({ ...table, port: proxy.port }, true);
  });

  afterAll(async () => {
    for (const seat of [direct, pooled]) await seat.leave();
    await proxy[Symbol.asyncDispose]();
    await verifiers.close();
    await pair[Symbol.asyncDispose]();
  });

  async function played(conversation: Conversation, seat: Seat, cut: Cut): Promise<Played> {
    const result = await seat.play(conversation, cut);
    if (conversation.dirty === true) {
      await seat.table.control.query('TRUNCATE item CASCADE');
      await seat.table.control.query(FILL);
    }
    return result;
  }

  for (const [topic, conversations] of Object.entries(TOPICS)) {
    if (!FULL && !CHOSEN.includes(topic)) continue;
    const same = conversations.filter(({ name }) => DIFFERENT[name] === undefined);
    test.each(same.map((conversation) => ({ like: conversation, name: conversation.name })))(
      `${topic}: $name`,
      async ({ like, name }) => {
        const conversation = ENDED_HERE.test(name) ? { ...like, refused: true } : like;
        const expected = await played(conversation, direct, 'whole');
        expect(await played(conversation, pooled, 'whole')).toEqual(expected);
        if (FULL) expect(await played(conversation, pooled, 'frames')).toEqual(expected);
      },
    );
  }
});
