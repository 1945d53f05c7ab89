/** Entry of the capture thread; `CaptureClient.attach` speaks to it. */
import { parentPort } from 'node:worker_threads';
import { invariant } from '../core/errors.js';
import { runCapture } from './service.js';

invariant(parentPort !== null, 'the capture runs in a worker thread');
await runCapture(parentPort);
