/** Two hundred sessions of every state at once: each is carried over exactly, or named and then closed with 57P01. */
import { expect, test } from 'vitest';
import { until } from '../support/servers.js';
import { send, sqlStates, tags, type RawClient } from './proxy-support.js';
import { closeGate, pair, prepare, raw, switchOver, switchServers, version } from './switch-support.js';

// Two hundred take their time where the machine is busy.
switchServers();

const SESSIONS = 200;

interface Kind {
  readonly name: string;
  /** What the n-th session of this kind does first. */
  readonly begin: (n: number) => string;
  /** A query, and what the n-th session must see, before the switch and after it. */
  readonly ask?: (n: number) => readonly [query: string, answer: string];
  /** Why it can't be moved, and about what. */
  readonly pinned?: (n: number) => readonly [reason: string, detail: string];
}

const KINDS: readonly Kind[] = [
  { name: 'nothing', begin: () => 'SELECT 1', ask: (n) => [`SELECT ${n}`, `${n}`] },
  {
    name: 'a prepared statement',
    begin: (n) => `PREPARE mine AS SELECT ${n}`,
    ask: (n) => ['EXECUTE mine', `${n}`],
  },
  { name: 'a role', begin: () => 'SET ROLE pg_monitor', ask: () => ['SELECT current_user', 'pg_monitor'] },
  {
    name: 'a search path',
    begin: () => 'SET search_path = other, public',
    ask: () => [
      `SELECT 'item'::regclass = 'other.item'::regclass AND 'item'::regclass <> 'public.item'::regclass`,
      't',
    ],
  },
  {
    name: 'a setting of its own',
    begin: (n) => `SET app.tenant = 'tenant ${n}'`,
    ask: (n) => [`SELECT current_setting('app.tenant')`, `tenant ${n}`],
  },
  {
    name: 'a channel',
    begin: (n) => `LISTEN channel_${n}`,
    ask: (n) => ['SELECT pg_listening_channels()', `channel_${n}`],
  },
  {
    name: 'a temporary table',
    begin: (n) => `CREATE TEMP TABLE scratch_${n} (a int)`,
    pinned: (n) => ['temporary-table', `scratch_${n}`],
  },
  {
    name: 'an advisory lock',
    begin: (n) => `SELECT pg_advisory_lock(${n})`,
    pinned: (n) => ['session-advisory-lock', `0, ${n}`],
  },
  {
    name: 'a cursor WITH HOLD',
    begin: (n) => `DECLARE held_${n} CURSOR WITH HOLD FOR SELECT 1`,
    pinned: (n) => ['cursor-with-hold', `held_${n}`],
  },
  {
    name: 'a cursor that was closed again',
    begin: () => 'BEGIN; DECLARE gone CURSOR FOR SELECT 1; FETCH gone; COMMIT',
    ask: () => ['SELECT count(*) FROM pg_cursors', '0'],
  },
];

interface Held {
  readonly kind: Kind;
  readonly n: number;
  readonly client: RawClient;
}

async function expectState(sessions: readonly Held[]): Promise<void> {
  const seen = await Promise.all(
    sessions.map(async ({ kind, n, client }) => {
      if (kind.ask === undefined) return '';
      const [answer] = await client.column(kind.ask(n)[0]);
      return `${n} ${kind.name}: ${answer}`;
    }),
  );
  const expected = sessions.map(({ kind, n }) =>
    kind.ask === undefined ? '' : `${n} ${kind.name}: ${kind.ask(n)[1]}`,
  );
  expect(seen).toEqual(expected);
}

test('two hundred sessions of mixed state', async () => {
  const sessions: Held[] = await Promise.all(
    Array.from({ length: SESSIONS }, async (_, n) => {
      const kind = KINDS[n % KINDS.length];
      if (kind === undefined) throw new Error('no kind');
      const client = await raw({ application_name: `session ${n}` });
      expect(sqlStates(await client.run([send.query(kind.begin(n))]))).toEqual([]);
      // Half of them hold a statement of the protocol as well.
      if (n % 2 === 0) await client.run([send.parse(`SELECT 'parsed ${n}'`, 'parsed'), send.sync()]);
      return { kind, n, client };
    }),
  );
  try {
    const pinned = sessions.filter(({ kind }) => kind.pinned !== undefined);
    const free = sessions.filter(({ kind }) => kind.pinned === undefined);
    const report = await prepare();
    expect(report).toMatchObject({ sessions: SESSIONS, warm: free.length });
    const named = report.blockers.map((each) => `${each.applicationName}: ${each.reason} ${each.detail}`);
    expect(named.sort()).toEqual(
      pinned.map(({ kind, n }) => `session ${n}: ${kind.pinned?.(n).join(' ')}`).sort(),
    );

    await expect(closeGate()).rejects.toMatchObject({ code: 'session-pinned' });
    await expectState(sessions);

    // Asking made some of them stale; a cutover surveys them anew as well.
    await prepare();
    await closeGate({ onPinned: 'close' });
    await switchOver();
    await until(() => pinned.every(({ client }) => client.closed), { what: 'pinned sessions to be closed' });
    for (const { client } of pinned) expect(sqlStates(client.messages)).toEqual(['57P01']);
    await expectState(free);
    for (const { n, client } of free) {
      expect(client.closed).toBe(false);
      if (n % 2 !== 0) continue;
      const bound = await client.run([send.bind([], 'parsed'), send.execute(), send.sync()]);
      expect(tags(bound)).toEqual(['SELECT 1']);
    }
    expect(new Set(await Promise.all(free.map(({ client }) => version(client))))).toEqual(new Set(['18']));

    // Each still hears its own channel, and nobody another's.
    const listening = free.filter(({ kind }) => kind.name === 'a channel');
    for (const { n } of listening) await pair.onDestination.query(`NOTIFY channel_${n}, 'to ${n}'`);
    for (const { n, client } of listening) {
      await until(() => client.types.includes('A'), { what: `session ${n} to hear` });
      const heard = client.take().filter(({ type }) => type === 'A');
      expect(heard.map(({ payload }) => payload.subarray(4).toString())).toEqual([`channel_${n}\0to ${n}\0`]);
    }
  } finally {
    for (const { client } of sessions) client.socket.destroy();
  }
});
