/**
 * `understudy run` with a hook: kills this very process with SIGKILL when an operation reaches the point named by
 * KILL_AT (`cutover before:fence`). Real kill -9, no handler runs, nothing is flushed.
 */
import { loadConfig, startUnderstudy } from 'understudy';

const config = loadConfig({ file: process.argv[2] });
const killAt = process.env.KILL_AT;
const understudy = await startUnderstudy(config, {
  observe: (point, kind) => {
    if (`${kind} ${point}` === killAt) process.kill(process.pid, 'SIGKILL');
  },
});
process.once('SIGTERM', () => {
  understudy.stop().catch(() => (process.exitCode = 1));
});
