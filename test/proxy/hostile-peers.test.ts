/**
 * Hostile clients in front of a real server, and a server that lies behind the same kind of proxy: each does harm to
 * its own session alone. Afterwards a proper client is served, and nothing is left behind.
 *
 * UNDERSTUDY_FUZZ_SEED repeats a run or makes another; UNDERSTUDY_FUZZ multiplies its length.
 */
import { once } from 'node:events';
import net from 'node:net';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { SUPERUSER_PASSWORD } from '../../src/app/demo/embedded-server.js';
import { Chance, corpus, mutate, pieces } from '../support/mutate.js';
import { databasePair, until, type DatabasePair } from '../support/servers.js';
import { WireClient } from './differential/wire-client.js';
import { RawClient, errorField, frame, startProxy } from './proxy-support.js';

const TIMES = Number(process.env['UNDERSTUDY_FUZZ'] ?? 1);
const SEED = Number(process.env['UNDERSTUDY_FUZZ_SEED'] ?? 20_260_102);
const AT_ONCE = 8;
const HOSTILE = 'hostile_player';

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

let pair: DatabasePair;

beforeAll(async () => {
  pair = await databasePair();
  await pair.onSource.query(`DO $$ BEGIN
    CREATE ROLE ${HOSTILE} LOGIN PASSWORD '${SUPERUSER_PASSWORD}';
  EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$`);
});

afterAll(async () => {
  await pair[Symbol.asyncDispose]();
});

function heldBytes(): number {
  collectGarbage();
  const { arrayBuffers, heapUsed } = process.memoryUsage();
  return arrayBuffers + heapUsed;
}

/** Runs `work` for 0 … count − 1, a few at once. */
async function each(count: number, work: (index: number) => Promise<void>): Promise<void> {
  let next = 0;
  const worker = async (): Promise<void> => {
    for (let index = next++; index < count; index = next++) await work(index);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}

test('hostile clients', async () => {
  await using running = await startProxy(pair, { frameBytesMax: 1_000_000 });
  const seeds = corpus('frontend');
  const converse = async (index: number): Promise<void> => {
    const chance = new Chance(SEED + 7919 * index);
    await using client = await WireClient.connect(running.port, {
      user: HOSTILE,
      database: running.database,
    });
    // One that waits for data or for its end must not wait for ever.
    client.socket.write(frame('Q', "SET statement_timeout = '2s'\0"));
    await client.until('Z');
    const parts = Array.from({ length: 5 + chance.below(40) }, () =>
      chance.once(3) ? mutate(chance.pick(seeds), chance, chance.once(4)) : chance.pick(seeds),
    );
    for (const piece of pieces(Buffer.concat(parts), chance, chance.pick([50, 5000]))) {
      if (client.closed) return;
      client.socket.write(piece);
      if (chance.once(3)) await new Promise((resolve) => setImmediate(resolve));
    }
    if (chance.once(2)) return;
    client.socket.end();
    await client.untilClosed();
  };
  await converse(0);
  const before = heldBytes();
  await each(200 * TIMES, converse);
  await until(() => running.proxy.status().sessions === 0, { what: 'all sessions to end' });
  await until(
    async () => {
      const { rows } = await pair.onSource.query(`SELECT FROM pg_stat_activity WHERE usename = '${HOSTILE}'`);
      return rows.length === 0;
    },
    { what: 'all backends to end' },
  );
  expect(heldBytes() - before).toBeLessThan(30 * 1024 * 1024);
  await using proper = await RawClient.connect(running.port, running.database);
  expect(await proper.column('SELECT 1')).toEqual(['1']);
});

// ---------------------------------------------------------------------------------------------------------------

const GREETING = Buffer.concat([
  frame('R', [0, 0, 0, 0]),
  frame('S', 'server_version\x0014.0\0'),
  frame('S', 'client_encoding\0UTF8\0'),
  frame('K', [0, 0, 0, 1, 0, 0, 0, 2]),
  frame('Z', 'I'),
]);
const ROW = frame('D', [0, 1, 0, 0, 0, 100], Buffer.alloc(100, 0x78));

interface LyingServer extends AsyncDisposable {
  readonly port: number;
  readonly connections: () => number;
}

/** Answers a startup, and from then on says what the seed makes of the corpus; each connection another tale. */
async function startLyingServer(): Promise<LyingServer> {
  const seeds = corpus('backend');
  const open = new Set<net.Socket>();
  let count = 0;
  const server = net.createServer((socket) => {
    const chance = new Chance(SEED + 104_729 * count++);
    open.add(socket);
    socket.on('error', () => undefined);
    socket.on('close', () => open.delete(socket));
    socket.on('data', () => undefined);
    socket.once('data', () => void lie(socket, chance, seeds).catch(() => undefined));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as net.AddressInfo).port,
    connections: () => open.size,
    async [Symbol.asyncDispose]() {
      for (const socket of open) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

async function lie(socket: net.Socket, chance: Chance, seeds: readonly Buffer[]): Promise<void> {
  const greeting = chance.once(6) ? mutate(GREETING, chance, true) : GREETING;
  for (const piece of pieces(greeting, chance, 90)) socket.write(piece);
  if (!chance.once(5)) await Promise.race([once(socket, 'data'), once(socket, 'close')]);
  if (chance.once(6)) {
    await endlessRows(socket);
    return;
  }
  const lies = chance.once(2);
  const parts = Array.from({ length: 1 + chance.below(30) }, () =>
    chance.once(2) ? mutate(chance.pick(seeds), chance, lies) : chance.pick(seeds),
  );
  const bytes = Buffer.concat(parts);
  const said = chance.once(3) ? bytes.subarray(0, chance.below(bytes.length + 1)) : bytes;
  for (const piece of pieces(said, chance, 200)) {
    if (socket.destroyed) return;
    socket.write(piece);
    if (chance.once(4)) await new Promise((resolve) => setImmediate(resolve));
  }
  if (chance.once(3)) socket.resetAndDestroy();
  else if (chance.once(2)) socket.end();
}

async function endlessRows(socket: net.Socket): Promise<void> {
  const rows = Buffer.concat(Array.from({ length: 500 }, () => ROW));
  while (!socket.destroyed) {
    if (!socket.write(rows)) await Promise.race([once(socket, 'drain'), once(socket, 'close')]);
  }
}

test('a server that lies', async () => {
  await using liar = await startLyingServer();
  const lying = { ...pair.source, port: liar.port };
  await using running = await startProxy(
    { source: lying, destination: pair.destination },
    { frameBytesMax: 1_000_000, connectTimeoutMs: 500 },
  );
  const told = new Set<string>();
  const converse = async (index: number): Promise<void> => {
    const chance = new Chance(SEED + 15_485_863 * index);
    await using client = await WireClient.open(running.port, { database: running.database });
    let bytes = 0;
    const enough = new Promise<void>((resolve) => {
      client.socket.on('data', (chunk: Buffer) => {
        bytes += chunk.length;
        if (bytes > 500_000) resolve();
      });
      client.socket.once('close', resolve);
    });
    client.startUp();
    await client.until('Z', 1, 2000);
    for (const seed of Array.from({ length: 1 + chance.below(6) }, () => chance.pick(corpus('frontend')))) {
      if (!client.closed) client.socket.write(seed);
    }
    // What the server says next may be nothing at all.
    await Promise.race([enough, client.until('Z', 1, 30)]);
    for (const { type, payload } of client.messages) {
      if (type === 'E' && payload !== null) told.add(errorField({ type, payload }, 'C'));
    }
  };
  await converse(0);
  const before = heldBytes();
  await each(400 * TIMES, converse);
  await until(() => running.proxy.status().sessions === 0, { what: 'all sessions to end' });
  expect(heldBytes() - before).toBeLessThan(30 * 1024 * 1024);
  // What breaks the protocol is named.
  expect(told).toContain('08P01');
});
