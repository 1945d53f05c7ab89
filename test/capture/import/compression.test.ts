import { execFileSync } from 'node:child_process';
import { gzipSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { decompressed } from '../../../src/capture/import/compression.js';

const LINES = Array.from({ length: 15_000 }, (_, at) => `line ${at} ${(at * 2_654_435_761) % 997}\n`).join(
  '',
);

async function* inPieces(bytes: Buffer, size: number): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

async function plain(bytes: Buffer, size: number): Promise<string> {
  const pieces: Buffer[] = [];
  for await (const piece of decompressed(inPieces(bytes, size))) pieces.push(piece);
  return Buffer.concat(pieces).toString();
}

function packed(program: string): Buffer | null {
  try {
    return execFileSync(program, ['-c', '-1'], { input: LINES, maxBuffer: 1 << 26 });
  } catch {
    return null;
  }
}

const PACKED: Readonly<Record<string, Buffer | null>> = {
  plain: Buffer.from(LINES),
  gzip: gzipSync(LINES),
  bzip2: packed('bzip2'),
  xz: packed('xz'),
};

for (const [name, bytes] of Object.entries(PACKED)) {
  test.skipIf(bytes === null)(`${name}: the same text, in pieces of any size`, async () => {
    if (bytes === null) return;
    for (const size of [61, 1000, 1 << 20]) expect((await plain(bytes, size)) === LINES).toBe(true);
  });

  test.skipIf(bytes === null)(`${name}: several behind one another`, async () => {
    if (bytes === null) return;
    expect((await plain(Buffer.concat([bytes, bytes]), 70_000)) === LINES + LINES).toBe(true);
  });

  if (name !== 'plain') {
    test.skipIf(bytes === null)(`${name}: a torn or damaged file is an error, never silence`, async () => {
      if (bytes === null) return;
      const middle = Math.floor(bytes.length / 2);
      await expect(plain(bytes.subarray(0, middle), 4096)).rejects.toMatchObject({
        code: 'log-unreadable',
      });
      const damaged = Buffer.from(bytes);
      damaged.fill(0x55, middle, middle + 16);
      await expect(plain(damaged, 4096)).rejects.toMatchObject({ code: 'log-unreadable' });
    });
  }
}

test('an empty file is empty, and a short one is as it is', async () => {
  expect(await plain(Buffer.alloc(0), 1)).toBe('');
  expect(await plain(Buffer.from('abc'), 1)).toBe('abc');
});

// The test runner finds the names of CommonJS modules in more ways than the program that users run does.
test.each(Object.keys(PACKED))('%s: the built program reads it too', (name) => {
  const bytes = PACKED[name];
  if (bytes === undefined || bytes === null) return;
  const built = new URL('../../../dist/capture/import/compression.js', import.meta.url).href;
  const script = `
    import { decompressed } from ${JSON.stringify(built)};
    for await (const piece of decompressed(process.stdin)) process.stdout.write(piece);`;
  const args = ['--input-type=module', '-e', script];
  const read = execFileSync(process.execPath, args, { input: bytes, maxBuffer: 1 << 26 });
  expect(read.toString() === LINES).toBe(true);
});
