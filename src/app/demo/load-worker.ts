/** Entry of the thread the load runs on; {@link LoadThread} is its other end. */
import { parentPort } from 'node:worker_threads';
import { serveThreadCalls } from '../../core/thread-call.js';
import { invariant } from '../../core/errors.js';
import { Load, type LoadOptions } from './load.js';

invariant(parentPort !== null, 'load-worker runs as a worker thread');

let load: Load | undefined;
function running(): Load {
  invariant(load !== undefined, 'the load was started');
  return load;
}

serveThreadCalls(parentPort, {
  async start(options: LoadOptions) {
    load = await Load.start(options);
  },
  snapshot: () => running().snapshot(),
  openWindow: () => running().openWindow(),
  closeWindow: () => running().closeWindow(),
  checkSessions: () => running().checkSessions(),
  stop: () => running().stop(),
});
