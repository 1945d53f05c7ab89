/**
 * Preloaded into every thread of the process under test (`--import`): its wall clock can be made to jump. The monotonic
 * clock goes on as it is, as a real one does when the wall clock is set. Processes that it starts keep theirs.
 */
import { BroadcastChannel, isMainThread } from 'node:worker_threads';

let shiftMs = 0;
const RealDate = Date;

globalThis.Date = class Date extends RealDate {
  constructor(...values) {
    super(...(values.length === 0 ? [RealDate.now() + shiftMs] : values));
  }
  static now() {
    return RealDate.now() + shiftMs;
  }
};

const channel = new BroadcastChannel('chaos-clock');
channel.onmessage = ({ data }) => (shiftMs = data);
channel.unref();

// Elsewhere, in a worker process of the proxy, a listener would take what is for the process itself before it listens.
const underTest = process.argv.slice(1, 2).some((path) => path.endsWith('understudy-child.mjs'));
if (isMainThread && underTest) {
  process.on('message', (message) => {
    if (typeof message.shiftMs !== 'number') return;
    shiftMs = message.shiftMs;
    channel.postMessage(shiftMs);
  });
}
