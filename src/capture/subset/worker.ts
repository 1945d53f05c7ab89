/** Entry of the thread that reads statements for the router; `ReachThread` (app) speaks to it. */
import { parentPort, workerData } from 'node:worker_threads';
import { invariant } from '../../core/errors.js';
import { runReach, type ReachWorkerData } from './service.js';

invariant(parentPort !== null, 'statements are read in a worker thread');
runReach(parentPort, workerData as ReachWorkerData);
