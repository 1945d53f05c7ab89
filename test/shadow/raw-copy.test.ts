import { PassThrough } from 'node:stream';
import type pg from 'pg';
import { expect, test } from 'vitest';
import { CopyOut } from '../../src/shadow/postgres/raw-copy.js';

function message(type: string, body: Buffer): Buffer {
  const header = Buffer.alloc(5);
  header.write(type, 'latin1');
  header.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([header, body]);
}

/** A connection whose bytes the test feeds; what pg's own listener is given lands in `toPg`. */
function connection(): {
  readonly connection: pg.Connection;
  readonly stream: PassThrough;
  readonly toPg: Buffer[];
} {
  const stream = new PassThrough();
  const toPg: Buffer[] = [];
  stream.on('data', (data: Buffer) => toPg.push(Buffer.from(data)));
  return { connection: { stream, query: () => undefined } as unknown as pg.Connection, stream, toPg };
}

test('frames go on as they came wherever reads cut them, and everything else is pg’s', () => {
  const rows = [Buffer.alloc(0), Buffer.from('a'), Buffer.from('row of some length'), Buffer.alloc(300, 'x')];
  const frames = rows.map((row) => message('d', row));
  const notice = message('N', Buffer.from('SNOTICE\0\0'));
  const empty = message('S', Buffer.alloc(0));
  const rest = [
    message('c', Buffer.alloc(0)),
    message('C', Buffer.from('COPY 4\0')),
    message('Z', Buffer.from('I')),
  ];
  const [first, ...others] = frames;
  const bytes = Buffer.concat([
    message('H', Buffer.from([1, 0, 1, 0, 1])),
    first ?? Buffer.alloc(0),
    notice,
    empty,
    ...others,
    ...rest,
  ]);
  for (let cut = 0; cut <= bytes.length; cut++) {
    for (const width of [1, 3, bytes.length]) {
      const { connection: fake, stream, toPg } = connection();
      const taken: Buffer[] = [];
      const query = new CopyOut('', {
        write: (data) => taken.push(Buffer.from(data)) > 0,
        onDrain: () => undefined,
      });
      query.submit(fake);
      stream.emit('data', bytes.subarray(0, cut));
      for (let at = cut; at < bytes.length; at += width) stream.emit('data', bytes.subarray(at, at + width));
      expect(Buffer.concat(taken).equals(Buffer.concat(frames))).toBe(true);
      expect(Buffer.concat(toPg).equals(Buffer.concat([notice, empty, ...rest]))).toBe(true);
    }
  }
});
