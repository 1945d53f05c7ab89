/**
 * The same conversation, direct and through the proxy: the server's messages are compared one by one. Played whole,
 * frame by frame, in single bytes, and with the server's own bytes arriving in pieces.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type pg from 'pg';
import { SUPERUSER_PASSWORD } from '../../src/app/demo/embedded-server.js';
import { deriveScramKeys, formatScramVerifier } from '../../src/wire/postgres/scram.js';
import type { DatabaseEndpoint, Side } from '../../src/core/ports.js';
import { QueryVerifiers } from '../../src/proxy/verifiers.js';
import { databasePair, type DatabasePair } from '../support/servers.js';
import { startSplittingRelay, type SplittingRelay } from '../support/splitting-relay.js';
import {
  PLAYER,
  Seat,
  ready,
  type Conversation,
  type Cut,
  type Played,
} from './differential/conversation.js';
import { COPY, COPY_BROKEN } from './differential/copy.js';
import { query } from './differential/frames.js';
import { EXTENDED } from './differential/extended.js';
import { FORMATS } from './differential/formats.js';
import { CLOSED_SILENTLY, MALFORMED } from './differential/malformed.js';
import { SIMPLE } from './differential/simple.js';
import { STARTUP } from './differential/startup.js';
import { STATE } from './differential/state.js';
import { TRANSACTIONS } from './differential/transactions.js';
import { startProxy, type RunningProxy } from './proxy-support.js';

const TOPICS: Record<string, readonly Conversation[]> = {
  simple: SIMPLE,
  transactions: TRANSACTIONS,
  extended: EXTENDED,
  copy: [...COPY, ...COPY_BROKEN],
  state: STATE,
  formats: FORMATS,
  malformed: MALFORMED,
  startup: STARTUP,
};

const SCHEMA = `
CREATE SCHEMA scratch;
CREATE TABLE item (id int PRIMARY KEY, name text);
CREATE TABLE child (id int, item int REFERENCES item DEFERRABLE INITIALLY DEFERRED);
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE feeling (id int, mood mood, moods mood[], pair pair, positive positive);
INSERT INTO feeling VALUES (1, 'happy', '{sad,ok}', '(1,x)', 5);
CREATE FUNCTION shout(int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'row %', $1; RETURN $1; END $$;
CREATE PROCEDURE twice(INOUT n int, INOUT t text) LANGUAGE plpgsql AS $$ BEGIN n := n * 2; t := t || t; END $$;
DO $$ BEGIN
  CREATE ROLE nologin_role NOLOGIN PASSWORD 'understudy-local';
  CREATE ROLE crowded_role LOGIN CONNECTION LIMIT 0 PASSWORD 'understudy-local';
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$`;
const FILL = "INSERT INTO item SELECT i, 'item ' || i FROM generate_series(1, 500) i";

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

describe.each(['source', 'destination'] as const)('on the version of the %s', (side) => {
  let pair: DatabasePair;
  let relay: SplittingRelay;
  let plain: RunningProxy;
  let dribbled: RunningProxy;
  let verifiers: QueryVerifiers;
  let direct: Seat;
  let seats: Record<'plain' | 'dribbled', Seat>;

  beforeAll(async () => {
    pair = await databasePair();
    const endpoint = pair[side];
    const control = side === 'source' ? pair.onSource : pair.onDestination;
    await control.query("SET search_path = 'public'");
    await control.query(SCHEMA);
    await control.query(FILL);
    await createPlayer(control);
    relay = await startSplittingRelay(endpoint.port);
    verifiers = new QueryVerifiers({
      current: () => ({ side, endpoint }),
      connectTimeoutMs: 10_000,
      queryTimeoutMs: 10_000,
      waitingMax: 10,
    });
    plain = await startProxy(serving(endpoint, endpoint.port), {}, { verifiers });
    dribbled = await startProxy(serving(endpoint, relay.port), {}, { verifiers });
    const table = { port: endpoint.port, database: endpoint.database, control };
    direct = new Seat(table);
    seats = {
      plain: new Seat({ ...table, port: plain.port }),
      dribbled: new Seat({ ...table, port: dribbled.port }),
    };
  });

  afterAll(async () => {
    for (const seat of [direct, seats.plain, seats.dribbled]) await seat.leave();
    await plain[Symbol.asyncDispose]();
    await dribbled[Symbol.asyncDispose]();
    await verifiers.close();
    await relay[Symbol.asyncDispose]();
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
    describe(topic, () => {
      test.each(conversations.map((conversation) => ({ conversation, name: conversation.name })))(
        '$name',
        async ({ conversation }) => {
          const expected = await played(conversation, direct, 'whole');
          expect(
            expected.stuck,
            `the conversation itself waits in vain, after\n${expected.messages.join('\n')}`,
          ).toBeNull();
          if (conversation.expect !== undefined)
            expect(expected.messages.join('\n')).toContain(`C${conversation.expect}`);
          for (const [proxy, cut] of waysToPlay(conversation, side)) {
            expect(await played(conversation, seats[proxy], cut)).toEqual(expected);
          }
        },
      );
    });
  }

  test.runIf(side === 'source')('a field of 100 MB is streamed, not held', async () => {
    const conversation: Conversation = {
      name: 'a field of 100 MB',
      steps: [query("SELECT repeat('x', 100000000)"), ready],
      whole: true,
    };
    const expected = await played(conversation, direct, 'whole');
    collectGarbage();
    const before = process.memoryUsage().arrayBuffers;
    let peak = before;
    const watch = setInterval(() => {
      peak = Math.max(peak, process.memoryUsage().arrayBuffers);
    }, 2);
    try {
      expect(await played(conversation, seats.plain, 'whole')).toEqual(expected);
    } finally {
      clearInterval(watch);
    }
    // Most of it is chunks that were passed on and not collected yet.
    expect(peak - before).toBeLessThan(80 * 1024 * 1024);
  });

  test.each(CLOSED_SILENTLY.map((conversation) => ({ conversation, name: conversation.name })))(
    'the server closes without a word, the proxy with a reason: $name',
    async ({ conversation }) => {
      const expected = await played(conversation, direct, 'whole');
      const proxied = await played(conversation, seats.plain, 'bytes');
      expect(proxied.messages.slice(0, -1)).toEqual(expected.messages);
      expect(proxied.messages.at(-1)).toMatch(/^E SFATAL.*C(08P01|08006)/);
    },
  );
});

/** A superuser whose password takes one iteration to prove: hundreds of logins must not cost a second of hashing each. */
async function createPlayer(control: pg.Client): Promise<void> {
  const salt = Buffer.alloc(16, 7);
  const { storedKey, serverKey } = await deriveScramKeys(SUPERUSER_PASSWORD, salt, 1);
  const verifier = formatScramVerifier({ iterations: 1, salt, storedKey, serverKey });
  await control.query(`DO $$ BEGIN
    CREATE ROLE ${PLAYER} SUPERUSER LOGIN PASSWORD '${verifier}';
  EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$`);
}

/** Everything with UNDERSTUDY_DIFFERENTIAL=full; by default what finds most for its time. */
function waysToPlay(conversation: Conversation, side: Side): (readonly ['plain' | 'dribbled', Cut])[] {
  const single: Cut = conversation.whole === true ? 'frames' : 'bytes';
  if (process.env['UNDERSTUDY_DIFFERENTIAL'] === 'full') {
    const cuts = conversation.whole === true ? [] : [1, 2, 3, 4, 5, 6, 9, 14, 21, 33];
    return (['plain', 'dribbled'] as const).flatMap((proxy) =>
      (['whole', 'frames', single, ...cuts] as const).map((cut) => [proxy, cut] as const),
    );
  }
  if (side === 'destination') return [['plain', 'frames']];
  return [
    ['plain', 'whole'],
    ['dribbled', single],
  ];
}

/** A pair of which only the first side is used. */
function serving(endpoint: DatabaseEndpoint, port: number): Pick<DatabasePair, 'source' | 'destination'> {
  return { source: { ...endpoint, port }, destination: endpoint };
}
