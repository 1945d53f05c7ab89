/**
 * The same conversations while subsets are on different sides: their tables are on the side on which no session begins, so
 * that each has to find its way there. What the server says is what it says without a proxy, or a refusal by name.
 */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { QueryVerifiers } from '../../src/proxy/login/verifiers.js';
import { databasePair, type DatabasePair } from '../support/servers.js';
import { Seat, type Conversation, type Cut, type Played } from './differential/conversation.js';
import { FILL, SCHEMA, TOPICS, createPlayer } from './differential/setting.js';
import { startProxy, type RunningProxy } from './proxy-support.js';
import { ReadHere } from './subset/subset-support.js';

let pair: DatabasePair;
let other: DatabasePair;
let proxy: RunningProxy;
let verifiers: QueryVerifiers;
let direct: Seat;
let armed: Seat;

beforeAll(async () => {
  pair = await databasePair();
  other = await databasePair();
  // Two databases of one server, as what two versions say differs anyway.
  const [source, destination] = [other.destination, pair.destination];
  for (const control of [other.onDestination, pair.onDestination]) {
    await control.query("SET search_path = 'public'");
    await control.query(SCHEMA);
    await control.query(FILL);
    await control.query('CREATE TABLE elsewhere (id int)');
  }
  await createPlayer(pair.onDestination);
  const rules = [{ subset: 'away', tables: ['public.item', 'public.child', 'public.feeling'] }].map(
    (rule) => ({ ...rule, foreignKeys: 'together' as const, crossing: 'refuse' as const }),
  );
  verifiers = new QueryVerifiers({
    current: () => ({ side: 'destination', endpoint: destination }),
    connectTimeoutMs: 10_000,
    queryTimeoutMs: 10_000,
    waitingMax: 10,
  });
  proxy = await startProxy(
    { source, destination },
    { askTimeoutMs: 5000 },
    { verifiers, subsets: { ids: ['away', 'rest'], reaches: new ReadHere({ source, destination }, rules) } },
  );
  proxy.proxy.setRoute('away', { side: 'destination', epoch: 1 });
  const control = pair.onDestination;
  direct = new Seat({ port: destination.port, database: destination.database, control });
  armed = new Seat({ port: proxy.port, database: source.database, control, moves: true });
});

afterAll(async () => {
  for (const seat of [direct, armed]) await seat.leave();
  await proxy[Symbol.asyncDispose]();
  await verifiers.close();
  await other[Symbol.asyncDispose]();
  await pair[Symbol.asyncDispose]();
});

/** Refused by name, or ended: docs/subsets.md. */
const REFUSED =
  /^(?:a text far longer|a syntax error with|an error with every|tables made|two-phase|a backend that ends itself|the unnamed statement after|Bind of a value that is not|300 parameters|a statement that no longer fits|notices within|copy in (?:by .*)?that fails before|DISCARD ALL)|in the middle of|notification|NOTIFY|replication=/;
const FULL = process.env['UNDERSTUDY_DIFFERENTIAL'] === 'full';
/** They hold what differs most here. */
const CHOSEN = ['transactions', 'extended'];

async function played(conversation: Conversation, seat: Seat, cut: Cut): Promise<Played> {
  const result = await seat.play(conversation, cut);
  if (conversation.dirty === true) {
    await pair.onDestination.query('TRUNCATE item CASCADE');
    await pair.onDestination.query(FILL);
  }
  return result;
}

for (const [topic, conversations] of Object.entries(TOPICS)) {
  if (!FULL && !CHOSEN.includes(topic)) continue;
  const same = conversations.filter(({ name }) => !REFUSED.test(name));
  test.each(same.map((conversation) => ({ conversation, name: conversation.name })))(
    `${topic}: $name`,
    async ({ conversation }) => {
      const expected = await played(conversation, direct, 'whole');
      for (const cut of FULL ? (['whole', 'frames', 'bytes'] as const) : (['frames'] as const))
        expect(await played(conversation, armed, cut)).toEqual(expected);
    },
  );
}
