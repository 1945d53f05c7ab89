/** A run whose orderly end never comes: one child ignores signals, one disposal hangs. */
import { spawn } from 'node:child_process';
import { RunOwner } from '../../dist/app/demo/run-owner.js';

const owner = new RunOwner('hanging-', (signal) => process.stdout.write(`${signal}\n`));
const script = `process.on('SIGTERM', () => {}); setInterval(() => {}, 1000); process.stdout.write('up')`;
const child = await owner.acquire(
  'a child',
  () =>
    new Promise((resolve) => {
      const started = spawn(process.execPath, ['-e', script], {
        cwd: owner.folder,
        detached: true,
        stdio: ['ignore', 'pipe', 'ignore'],
      });
      started.stdout.once('data', () => resolve(started));
    }),
  () => new Promise(() => child.kill('SIGTERM')),
);
process.stdout.write('hanging\n');
await owner.interruptible(new Promise(() => undefined)).catch(() => undefined);
await owner.close();
process.stdout.write('closed\n');
