/**
 * The same conversation, direct and through the proxy: the server's messages are compared one by one. Played whole,
 * frame by frame, in single bytes, and with the server's own bytes arriving in pieces.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { Side } from '../../src/core/ports.js';
import { QueryVerifiers } from '../../src/proxy/login/verifiers.js';
import { databasePair, type DatabasePair } from '../support/servers.js';
import { startSplittingRelay, type SplittingRelay } from '../support/splitting-relay.js';
import { Seat, ready, type Conversation, type Cut, type Played } from './differential/conversation.js';
import { query } from './differential/frames.js';
import { CLOSED_SILENTLY } from './differential/malformed.js';
import { FILL, SCHEMA, TOPICS, createPlayer, serving } from './differential/setting.js';
import { startProxy, type RunningProxy } from './proxy-support.js';

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
