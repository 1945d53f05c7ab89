import { createHash } from 'node:crypto';
import { once } from 'node:events';
import net from 'node:net';
import { afterEach, expect, test } from 'vitest';
import { feedFrom, type SocketFeed } from '../../src/proxy/socket-feed.js';
import type { Backend } from '../../src/proxy/backend/backend.js';
import { LeftConnections } from '../../src/proxy/backend/left-connections.js';
import { closeWith } from '../../src/proxy/socket-reader.js';
import { writesOf } from '../../src/proxy/socket-writes.js';
import { SessionSockets } from '../../src/proxy/session/session-sockets.js';
import { socketPairs } from '../support/socket-pairs.js';
import { until } from '../support/servers.js';

const { open, connection, closeAll } = socketPairs();
afterEach(closeAll);

test('what is read again and again lies in the same memory', async () => {
  const { near, far } = await connection();
  const seen: { readonly text: string; readonly memory: ArrayBufferLike; readonly at: number }[] = [];
  feedFrom(near, (chunk) => {
    seen.push({ text: chunk.toString(), memory: chunk.buffer, at: chunk.byteOffset });
  });
  near.resume();
  for (const text of ['one', 'two', 'three']) {
    far.write(text);
    await until(() => seen.at(-1)?.text === text);
  }
  expect(seen).toHaveLength(3);
  expect(new Set(seen.map(({ memory }) => memory)).size).toBe(1);
  expect(new Set(seen.map(({ at }) => at)).size).toBe(1);
  // An idle client holds no more than that: no slab of Node's pool.
  expect(seen[0]?.memory.byteLength).toBe(1024);
});

test('every byte is handed on once and in order, in reads of any size, and what is kept stays as it was', async () => {
  const { near, far } = await connection();
  const sent = createHash('sha256');
  const received = createHash('sha256');
  const kept = createHash('sha256');
  let bytes = 0;
  const chunks: Buffer[] = [];
  const feed: SocketFeed = feedFrom(near, (chunk) => {
    received.update(chunk);
    bytes += chunk.length;
    chunks.push(chunk.length % 3 === 0 ? Buffer.from(chunk) : chunk);
    if (chunk.length % 3 !== 0) feed.keep();
  });
  near.resume();
  let total = 0;
  let seed = 7;
  for (let round = 0; round < 300; round++) {
    seed = (seed * 48_271) % 2_147_483_647;
    // Runs of small messages, and now and then one that fills every buffer.
    const piece = Buffer.alloc(round % 40 < 4 ? 1 + (seed % 400_000) : 1 + (seed % 900), seed % 251);
    sent.update(piece);
    total += piece.length;
    if (!far.write(piece)) await once(far, 'drain');
    if (seed % 2 === 0) await until(() => bytes === total);
  }
  await until(() => bytes === total);
  for (const chunk of chunks) kept.update(chunk);
  const expected = sent.digest('hex');
  expect(received.digest('hex')).toBe(expected);
  expect(kept.digest('hex')).toBe(expected);
});

test('chunks that are kept hold hardly more memory than their own bytes', async () => {
  const { near, far } = await connection();
  const chunks: Buffer[] = [];
  let bytes = 0;
  let keeping = false;
  const feed: SocketFeed = feedFrom(near, (chunk) => {
    bytes += chunk.length;
    if (!keeping) return;
    chunks.push(chunk);
    feed.keep();
  });
  near.resume();
  const large = Buffer.alloc(1_000_000);
  far.write(large);
  await until(() => bytes === large.length);
  keeping = true;
  for (let sent = 1; sent <= 60; sent++) {
    far.write(Buffer.alloc(100, sent));
    await until(() => bytes === large.length + sent * 100);
  }
  expect(chunks.map((chunk) => chunk[99])).toEqual(chunks.map((_, index) => index + 1));
  const held = [...new Set(chunks.map(({ buffer }) => buffer))];
  expect(held.reduce((total, { byteLength }) => total + byteLength, 0)).toBeLessThanOrEqual(2 * 65_536);
});

test('what had been read before comes first, and a paused socket hands on nothing else', async () => {
  const { near, far } = await connection();
  const seen: string[] = [];
  near.on('readable', () => undefined);
  far.write('early ');
  await until(() => near.readableLength === 6);
  near.removeAllListeners('readable');
  await new Promise((resolve) => setImmediate(resolve));
  near.pause();
  feedFrom(near, (chunk) => seen.push(chunk.toString()));
  expect(seen).toEqual(['early ']);
  far.write('late');
  await new Promise((resolve) => far.write('r', resolve));
  await new Promise((resolve) => setImmediate(resolve));
  expect(seen).toEqual(['early ']);
  near.resume();
  await until(() => seen.join('') === 'early later');
});

test('a socket that is closed for what had been read before is not left paused', async () => {
  const { near, far } = await connection();
  near.on('readable', () => undefined);
  far.write('bad');
  await until(() => near.readableLength === 3);
  near.removeAllListeners('readable');
  await new Promise((resolve) => setImmediate(resolve));
  near.pause();
  feedFrom(near, () => closeWith(near, Buffer.from('why'), 60_000)).stop();
  expect(near.isPaused()).toBe(false);
  const heard: Buffer[] = [];
  far.on('data', (chunk: Buffer) => heard.push(chunk));
  far.end('more');
  await once(near, 'close');
  expect(Buffer.concat(heard).toString()).toBe('why');
});

test('it can be paused while it hands on, and its end is told', async () => {
  const { near, far } = await connection();
  let bytes = 0;
  let ended = false;
  near.allowHalfOpen = true;
  near.on('end', () => {
    ended = true;
  });
  feedFrom(near, (chunk) => {
    bytes += chunk.length;
    near.pause();
    setImmediate(() => near.resume());
  });
  near.resume();
  far.end(Buffer.alloc(500_000, 1));
  await until(() => ended);
  expect(bytes).toBe(500_000);
  // The other direction is open still.
  far.resume();
  near.end('bye');
  await once(far, 'close');
});

test('a later feed takes over from an earlier one; a stopped one hears nothing', async () => {
  const { near, far } = await connection();
  const first: string[] = [];
  const second: string[] = [];
  const feed = feedFrom(near, (chunk) => first.push(chunk.toString()));
  near.resume();
  far.write('a');
  await until(() => first.length === 1);
  const later = feedFrom(near, (chunk) => second.push(chunk.toString()));
  feed.stop();
  far.write('b');
  await until(() => second.length === 1);
  later.stop();
  const read = near.bytesRead;
  far.write('c');
  await until(() => near.bytesRead === read + 1);
  expect([first, second]).toEqual([['a'], ['b']]);
});

test('a socket that can’t be read so is heard as a stream', async () => {
  class Other extends net.Socket {}
  const server = net.createServer((socket) => socket.end('hello')).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const socket = new Other();
  open.push(socket, { destroy: () => server.close() });
  socket.connect((server.address() as net.AddressInfo).port, '127.0.0.1').pause();
  let text = '';
  const feed = feedFrom(socket, (chunk) => {
    text += chunk.toString();
    feed.keep();
  });
  socket.resume();
  await once(socket, 'end');
  expect(text).toBe('hello');
  feed.stop();
  expect(socket.listenerCount('data')).toBe(0);
});

test('what a slow client has not taken yet is not overwritten by what comes next', async () => {
  const client = await connection();
  const server = await connection();
  const sockets: SessionSockets = new SessionSockets(
    client.near,
    { socket: server.near, leftover: Buffer.alloc(0) } as Backend,
    {
      onClientData: (chunk) => sockets.toServer(chunk),
      onClientGone: () => undefined,
      onClientEnd: () => undefined,
      onBackendData: (chunk) => sockets.toClient(chunk),
      onBackendGone: () => undefined,
      onLeft: () => undefined,
    },
  );
  sockets.start(Buffer.from('>'), Buffer.alloc(0));
  client.far.pause();
  const sent = createHash('sha256').update('>');
  let total = 1;
  for (let round = 0; !writesOf(client.near).full; round++) {
    const piece = Buffer.alloc(7000, round % 251);
    server.far.write(piece);
    sent.update(piece);
    total += piece.length;
    await until(() => sockets.bytesToClient === total);
  }
  const received = createHash('sha256');
  let bytes = 0;
  client.far.on('data', (chunk: Buffer) => {
    received.update(chunk);
    bytes += chunk.length;
  });
  client.far.resume();
  await until(() => bytes === total);
  expect(received.digest('hex')).toBe(sent.digest('hex'));
});

test('connections that were left are told goodbye later, the first that was left first; at the end all at once', async () => {
  const told: string[] = [];
  const leave = async (left: LeftConnections, name: string): Promise<net.Socket> => {
    const { near, far } = await connection();
    far.on('data', (chunk: Buffer) => told.push(`${name} ${chunk.toString('latin1', 0, 1)}`));
    far.on('end', () => far.end());
    left.add(near);
    return near;
  };
  const patient = new LeftConnections(60_000);
  await leave(patient, 'first');
  const lost = await leave(patient, 'lost');
  lost.destroy();
  await until(() => patient.size === 1);
  expect(told).toEqual([]);
  patient.end();
  await until(() => told.length === 1);

  const prompt = new LeftConnections(0);
  const second = await leave(prompt, 'second');
  await until(() => second.destroyed && prompt.size === 0);
  await leave(prompt, 'third');
  await until(() => told.length === 3);
  expect(told).toEqual(['first X', 'second X', 'third X']);
});
