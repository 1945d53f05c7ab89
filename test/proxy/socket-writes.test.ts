import { once } from 'node:events';
import net from 'node:net';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { closeWith } from '../../src/proxy/socket-reader.js';
import { writesOf, type SocketWrites } from '../../src/proxy/socket-writes.js';
import { socketPairs } from '../support/socket-pairs.js';
import { until } from '../support/servers.js';

const { open, connection, closeAll } = socketPairs();
afterEach(closeAll);

let near: net.Socket;
let far: net.Socket;
let writes: SocketWrites;
/** What the far end has been sent. */
let heard: string;
beforeEach(async () => {
  ({ near, far } = await connection());
  near.on('error', () => undefined);
  writes = writesOf(near);
  heard = '';
  far.on('data', (chunk: Buffer) => (heard += chunk.toString('latin1')));
});

/** Writes until the kernel takes no more; returns what was written. */
function fill(): string {
  far.pause();
  let said = '';
  for (let round = 0; !writes.full; round++) {
    const piece = String.fromCharCode(97 + (round % 26)).repeat(7001);
    said += piece;
    const taken = writes.write(Buffer.from(piece));
    expect(taken).toBe(!writes.full);
  }
  return said;
}

test('most writes pass by the stream, and the kernel has them when they return', async () => {
  // The first one ever is the stream's, which shows how it is done.
  writes.write(Buffer.from('first '));
  let streamed = 0;
  const write = near.write.bind(near);
  near.write = (...args: unknown[]) => {
    streamed += 1;
    return Reflect.apply(write, near, args) as boolean;
  };
  await until(() => near.writableLength === 0);
  for (const word of ['second ', 'third ', 'fourth']) {
    expect(writes.write(Buffer.from(word))).toBe(true);
    expect([writes.unsent, writes.full]).toEqual([false, false]);
  }
  await until(() => heard === 'first second third fourth');
  expect(streamed).toBe(0);
  expect(writesOf(near)).toBe(writes);
});

test('no request is given to the runtime twice: it may be in use though nothing seems to be waiting', async () => {
  writes.write(Buffer.from('first '));
  await until(() => near.writableLength === 0);
  const handle = Reflect.get(near, '_handle') as { writeBuffer: (request: object, bytes: Buffer) => number };
  const { writeBuffer } = handle;
  const given = new Set<object>();
  handle.writeBuffer = (request, bytes) => {
    given.add(request);
    return writeBuffer.call(handle, request, bytes);
  };
  for (let times = 0; times < 3; times++) expect(writes.write(Buffer.from('word '))).toBe(true);
  expect(given.size).toBe(3);
});

test('bytes keep their order, whichever way they go', async () => {
  let said = '';
  for (let round = 0; round < 200; round++) {
    const word = `${round} `.repeat(1 + (round % 7) * 50);
    said += word;
    if (round % 5 === 0) near.cork();
    if (round % 3 === 0) near.write(word);
    else writes.write(Buffer.from(word));
    if (round % 5 === 2) near.uncork();
  }
  near.uncork();
  said += fill();
  // Behind what the handle still has.
  near.write('stream ');
  writes.write(Buffer.from('handle '));
  said += 'stream handle ';
  far.resume();
  await until(() => heard.length === said.length);
  expect(heard === said).toBe(true);
});

test('a full socket says so, tells when it is not any more, and then is written to as before', async () => {
  let drained = 0;
  near.on('drain', () => (drained += 1));
  for (let times = 1; times <= 3; times++) {
    const before = heard.length;
    const said = fill();
    expect([writes.unsent, drained]).toEqual([true, times - 1]);
    far.resume();
    await until(() => drained === times && heard.length === before + said.length);
    expect(heard.slice(before) === said).toBe(true);
    expect([writes.unsent, writes.full]).toEqual([false, false]);
  }
});

test('what is written last is read before the end', async () => {
  const said = fill();
  closeWith(near, Buffer.from('bye'), 60_000);
  const closed = once(far, 'end');
  far.resume();
  await closed;
  expect(heard === `${said}bye`).toBe(true);
  far.end();
});

test('a socket that is destroyed while it writes tells nobody anything more', async () => {
  fill();
  near.on('drain', () => expect.unreachable());
  const closed = once(near, 'close');
  near.destroy();
  await closed;
  expect(writes.write(Buffer.from('x'))).toBe(false);
});

test('a peer that is gone is an error of the socket', async () => {
  const errors: unknown[] = [];
  near.on('error', (error: NodeJS.ErrnoException) => errors.push(error.code));
  far.resetAndDestroy();
  const closed = new Promise((resolve) => near.once('close', resolve));
  while (!near.destroyed) {
    writes.write(Buffer.from('anybody?'));
    await new Promise((resolve) => setImmediate(resolve));
  }
  await closed;
  expect(['EPIPE', 'ECONNRESET']).toContain(errors[0]);
  expect(errors).toHaveLength(1);
});

test('a socket that can’t be written so is written to as a stream', async () => {
  class Other extends net.Socket {}
  const server = net.createServer((socket) => socket.pipe(socket)).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const socket = new Other();
  open.push(socket, { destroy: () => server.close() });
  socket.connect((server.address() as net.AddressInfo).port, '127.0.0.1');
  const other = writesOf(socket);
  expect(other.write(Buffer.from('x'))).toBe(true);
  expect([other.unsent, other.full]).toEqual([true, false]);
  expect(String(await once(socket, 'data'))).toBe('x');
});
