/** The drain deadline has passed: what a pooled client has open is ended on its connection (session-rollback.ts). */
import { rollBackSession, type RollbackSubject } from '../session/session-rollback.js';
import type { PooledBackend } from './pooled-backend.js';
import type { PoolContext } from './pool-context.js';

type OfTheClient = Omit<
  RollbackSubject,
  'toServer' | 'cancelBackend' | 'sendOwn' | 'sleep' | 'nowMs' | 'cancelTimeoutMs'
>;

/** Resolves as `rollBackSession`. */
export async function rollBackLinked(
  backend: PooledBackend,
  { clock, settings }: PoolContext,
  client: OfTheClient,
): Promise<void> {
  let last: Promise<unknown> = Promise.resolve();
  await rollBackSession({
    ...client,
    toServer: (bytes) => void backend.write(bytes),
    cancelBackend: () => backend.cancel(),
    // A connection takes one question at a time.
    sendOwn: (messages) => {
      last = last.then(() => backend.exchange([messages], 1));
      return last;
    },
    sleep: (ms) => clock.sleep(ms),
    nowMs: () => clock.monotonicMs(),
    cancelTimeoutMs: settings.cancelTimeoutMs,
  });
}
