/** Entry of the mirror's thread. */
import { parentPort, workerData } from 'node:worker_threads';
import { invariant } from '../../core/errors.js';
import { runMirror, type MirrorWorkerData } from './service.js';

invariant(parentPort !== null, 'the mirror runs in a worker thread');
await runMirror(parentPort, workerData as MirrorWorkerData);
