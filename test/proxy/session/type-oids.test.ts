/** Types, relations and functions with other OIDs on each side: a client goes on seeing those it began with. */
import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { WHOLE_DATABASE, type Side } from '../../../src/core/ports.js';
import { binaryTypeFindings } from '../../../src/cutover/binary-types.js';
import { Session } from '../../../src/cutover/session.js';
import { readNamedOids } from '../../../src/proxy/session/type-oids.js';
import { databasePair, type DatabasePair } from '../../support/servers.js';
import {
  RawClient,
  firstColumn,
  frame,
  send,
  sqlStates,
  startProxy,
  type Message,
  type RunningProxy,
} from '../proxy-support.js';
import { bind, describeStatement, execute, functionCall, parse, sync } from '../differential/frames.js';

const SCHEMA = `
  CREATE TYPE public.mood AS ENUM ('sad', 'happy');
  CREATE TYPE public.pair AS (a int, m public.mood);
  CREATE DOMAIN public.positive AS int CHECK (VALUE > 0);
  CREATE TABLE public.feeling (id int, mood public.mood, moods public.mood[], pair public.pair, positive public.positive);
  INSERT INTO public.feeling VALUES (1, 'happy', '{sad,happy}', '(1,sad)', 5);
  CREATE FUNCTION public.half(int) RETURNS int LANGUAGE sql AS 'SELECT $1 / 2'`;

let pair: DatabasePair;
let running: RunningProxy;

beforeAll(async () => {
  pair = await databasePair();
  // Other objects first, so that no OID is the same on both sides, and some are each other's.
  await pair.onDestination.query(
    'CREATE TYPE public.a AS ENUM (); CREATE TYPE public.b AS ENUM (); CREATE FUNCTION public.c() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$',
  );
  for (const client of [pair.onSource, pair.onDestination]) await client.query(SCHEMA);
});

beforeEach(async () => {
  const control = (side: Side): pg.Client => (side === 'source' ? pair.onSource : pair.onDestination);
  running = await startProxy(pair, {}, { namedOids: (side) => readNamedOids(control(side)) });
});

afterEach(async () => {
  await running[Symbol.asyncDispose]();
});

afterAll(async () => {
  await pair[Symbol.asyncDispose]();
});

async function move(to: Side): Promise<void> {
  const { proxy } = running;
  const { signal } = new AbortController();
  await proxy.prepare(WHOLE_DATABASE, to, signal);
  await proxy.hold(WHOLE_DATABASE, to, {
    drainTimeoutMs: 5000,
    onDrainTimeout: 'abort',
    onPinned: 'refuse',
    signal,
  });
  await proxy.switchTo(WHOLE_DATABASE, { side: to, epoch: proxy.route(WHOLE_DATABASE).epoch + 1 });
  proxy.release(WHOLE_DATABASE);
}

async function oid(side: Side, name: string): Promise<number> {
  const client = side === 'source' ? pair.onSource : pair.onDestination;
  const { rows } = await client.query<{ oid: string }>(`SELECT ${name}::oid AS oid`);
  return Number(rows[0]?.oid);
}

const COLUMNS = 'SELECT id, mood, moods, pair, positive, feeling FROM public.feeling f';
const WHERE = 'SELECT mood FROM public.feeling WHERE mood = $1 AND $2 <> moods AND positive = $3';

/** ParameterStatus comes once, with the move. */
const withoutStatus = (messages: readonly Message[]): Message[] =>
  messages.filter(({ type }) => type !== 'S');

test('descriptions stay the same, byte for byte, over a cutover and a rollback', async () => {
  expect(await oid('source', "'public.mood'::regtype")).not.toBe(
    await oid('destination', "'public.mood'::regtype"),
  );
  await using client = await RawClient.connect(running.port, running.database);
  const mood = await oid('source', "'public.mood'::regtype");
  const moods = await oid('source', "'public.mood[]'::regtype");
  await client.run([parse(WHERE, 'before'), parse(WHERE, 'typed', [mood, moods, 0]), sync]);
  const ask = async (): Promise<Message[]> =>
    withoutStatus(
      await client.run(
        [
          send.query(COLUMNS.replace(', feeling FROM', ', f FROM')),
          parse(COLUMNS.replace(', feeling FROM', ', f.mood FROM')), describeStatement(), bind({ results: [0, 1, 0, 0, 1, 0] }), send.describe('P'), execute(), sync,
          describeStatement('before'), bind({ statement: 'before', values: ['happy', '{}', '5'] }), execute(), sync,
          describeStatement('typed'), bind({ statement: 'typed', values: ['sad', '{}', '5'] }), execute(), sync,
          parse('SELECT $1, $2', '', [mood, moods]), describeStatement(), bind({ values: ['sad', '{happy}'] }), execute(), sync,
        ],
        5,
      ),
    ); // prettier-ignore
  const expected = await ask();
  expect(sqlStates(expected)).toEqual([]);
  expect(expected.filter(({ type }) => type === 't')).toHaveLength(4);
  for (const to of ['destination', 'source', 'destination'] as const) {
    await move(to);
    expect(await ask()).toEqual(expected);
  }
});

test('messages in pieces are rewritten too', async () => {
  await using client = await RawClient.connect(running.port, running.database);
  const mood = await oid('source', "'public.mood'::regtype");
  const frames = Buffer.concat([
    parse('SELECT $1, 1', 's', [mood]),
    describeStatement('s'),
    send.close('S', 's'),
    sync,
  ]);
  const expected = await client.run([frames]);
  await move('destination');
  client.take();
  for (let cut = 1; cut < frames.length; cut++) {
    client.socket.write(frames.subarray(0, cut));
    await new Promise((resolve) => setImmediate(resolve));
    client.socket.write(frames.subarray(cut));
    await client.readies(1);
    expect(withoutStatus(client.take())).toEqual(expected);
  }
});

test('functions are called by the OID the client knows', async () => {
  await using client = await RawClient.connect(running.port, running.database);
  const half = await oid('source', "'public.half'::regproc");
  const call = functionCall(half, ['84']);
  const expected = await client.run([call]);
  expect(expected[0]?.payload.toString('latin1', 4)).toBe('42');
  await move('destination');
  expect(withoutStatus(await client.run([call]))).toEqual(expected);
  client.socket.write(call.subarray(0, 7));
  await new Promise((resolve) => setImmediate(resolve));
  client.socket.write(call.subarray(7));
  await client.readies(1);
  expect(client.take()).toEqual(expected);
});

test('an unnamed statement made before the move is made again with the new side’s OIDs', async () => {
  await using client = await RawClient.connect(running.port, running.database);
  const mood = await oid('source', "'public.mood'::regtype");
  await client.run([parse("SELECT $1, 'x'", '', [mood]), sync]);
  await move('destination');
  const answer = await client.run([bind({ values: ['sad'] }), execute(), sync]);
  expect(sqlStates(answer)).toEqual([]);
  expect(answer.filter(({ type }) => type === 'D').map(firstColumn)).toEqual(['sad']);
});

test('a session that begins after the switch sees its own server’s', async () => {
  await using early = await RawClient.connect(running.port, running.database);
  await early.run([sync]);
  await move('destination');
  await using late = await RawClient.connect(running.port, running.database);
  const typeOf = async (client: RawClient): Promise<number | undefined> =>
    (await client.run([send.query('SELECT mood FROM public.feeling')]))
      .find(({ type }) => type === 'T')
      ?.payload.readUInt32BE(2 + 'mood\0'.length + 6);
  expect(await typeOf(late)).toBe(await oid('destination', "'public.mood'::regtype"));
  expect(await typeOf(early)).toBe(await oid('source', "'public.mood'::regtype"));
  await move('source');
  expect(await typeOf(late)).toBe(await oid('destination', "'public.mood'::regtype"));
  expect(await typeOf(early)).toBe(await oid('source', "'public.mood'::regtype"));
});

test('pg: parsers registered by OID go on being used', async () => {
  const mood = await oid('source', "'public.mood'::regtype");
  const moods = await oid('source', "'public.mood[]'::regtype");
  const types = new pg.TypeOverrides();
  types.setTypeParser(mood, (value) => `mood ${value}`);
  types.setTypeParser(moods, (value) => value.slice(1, -1).split(','));
  const client = new pg.Client({
    connectionString: running.url,
    types,
  });
  await client.connect();
  const text = 'SELECT id, mood, moods FROM public.feeling WHERE mood = $1';
  const expected = [{ id: 1, mood: 'mood happy', moods: ['sad', 'happy'] }];
  for (const to of [null, 'destination', 'source'] as const) {
    if (to !== null) await move(to);
    for (const query of [{ text }, { text, name: 'named' }, { text, name: `named on the ${to}` }]) {
      expect((await client.query({ ...query, values: ['happy'] })).rows).toEqual(expected);
    }
  }
  await client.end();
});

test('types used in binary form are told by those who prepare a move, and of them those that carry OIDs', async () => {
  await using binary = await RawClient.connect(running.port, running.database);
  await using text = await RawClient.connect(running.port, running.database);
  const used = async (): Promise<readonly number[]> => {
    const { signal } = new AbortController();
    return (await running.proxy.prepare(WHOLE_DATABASE, 'destination', signal)).binaryTypes ?? [];
  };
  const BINARY = [0, 1, 0, 1];
  const sql = 'SELECT mood, moods, pair, positive FROM public.feeling';
  await text.run([parse(sql), bind(), describeStatement(), execute(), sync]);
  // Described first and bound often, as drivers do it.
  await binary.run([parse(sql, 'read'), describeStatement('read'), sync]);
  expect(await used()).toEqual([]);
  await binary.run([frame('B', '\0read\0', [0, 0, 0, 0], BINARY), execute(), sync]);
  const types = await used();
  expect(types).toHaveLength(3);
  // A parameter alone.
  const declared = 'SELECT $1::public.mood[] IS NULL';
  await binary.run([parse(declared, 'ask'), describeStatement('ask'), sync]);
  expect(await used()).toEqual(types);

  const session = new Session('source', pair.onSource, 0);
  const findings = await binaryTypeFindings(session, 'source', types);
  expect(findings.map(({ object }) => object)).toEqual(['public.mood[]', 'public.pair']);
  expect(await binaryTypeFindings(session, 'source', [])).toEqual([]);
});
