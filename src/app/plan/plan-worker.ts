/** The thread that fits forecasts: seconds of a core, which the thread that serves clients has not got. */
import { parentPort, workerData } from 'node:worker_threads';
import { asUnderstudyError } from '../../core/errors.js';
import { planSteps } from '../../predict/plan.js';
import type { PlanTask, PlanThreadMessage } from './plan-thread.js';

const port = parentPort;
if (port !== null) {
  const say = (message: PlanThreadMessage): void => port.postMessage(message);
  try {
    const { subsets, context } = workerData as PlanTask;
    const steps = planSteps(subsets, context);
    let step = steps.next();
    while (step.done !== true) {
      say({ progress: step.value });
      step = steps.next();
    }
    say({ rows: step.value });
  } catch (error) {
    say({ error: asUnderstudyError(error, 'internal', 'planning').toJSON() });
  }
}
