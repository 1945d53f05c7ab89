/** A plan made in a thread of its own, which ends with it. */
import { Worker } from 'node:worker_threads';
import { UnderstudyError, type SerializedError } from '../../core/errors.js';
import type { FitProgress } from '../../predict/fit-all.js';
import type { PlanContext, PlanRow, PlanSubset } from '../../predict/plan.js';

const ENTRY = new URL('./plan-worker.js', import.meta.url);

export interface PlanTask {
  readonly subsets: readonly PlanSubset[];
  readonly context: PlanContext;
}

export type PlanThreadMessage =
  | { readonly progress: FitProgress }
  | { readonly rows: readonly PlanRow[] }
  | { readonly error: SerializedError };

/** Throws what `makePlan` throws, `cancelled`, and `internal` where the thread dies. */
export function planInThread(
  task: PlanTask,
  signal: AbortSignal,
  onProgress: (progress: FitProgress) => void = () => undefined,
): Promise<readonly PlanRow[]> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(ENTRY, { workerData: task, name: 'understudy-plan' });
    const cancel = (): void => end(() => reject(new UnderstudyError('cancelled', 'planning was stopped')));
    const end = (settle: () => void): void => {
      signal.removeEventListener('abort', cancel);
      void worker.terminate();
      settle();
    };
    signal.addEventListener('abort', cancel, { once: true });
    worker.on('message', (message: PlanThreadMessage) => {
      if ('progress' in message) onProgress(message.progress);
      else if ('rows' in message) end(() => resolve(message.rows));
      else end(() => reject(UnderstudyError.fromJSON(message.error)));
    });
    worker.on('error', (cause) =>
      end(() => reject(new UnderstudyError('internal', 'the planning thread failed', { cause }))),
    );
    worker.on('exit', () =>
      end(() => reject(new UnderstudyError('internal', 'the planning thread ended early'))),
    );
    if (signal.aborted) cancel();
  });
}
