/**
 * The mirror: what clients write, told to the shadow that follows by it. On a path of its own, beside the capture's.
 *
 * The tap copies each statement into the mirror's ring and, as before, to the tap behind it. While the thread is down
 * the ring fills and drops; the thread that follows says that something was lost, and the shadow compares.
 */
import { ByteRingWriter, createByteRing } from '../core/byte-ring.js';
import type { StatementTap } from '../core/capture-ports.js';
import type { Clock } from '../core/clock.js';
import { UnderstudyError } from '../core/errors.js';
import type { Log } from '../core/log.js';
import type { TouchedRows } from '../core/ports.js';
import { serveThreadCalls } from '../core/thread-call.js';
import type { MirrorWorkerData } from '../capture/mirror/service.js';
import { RingTap } from '../capture/tap.js';
import type { ResolvedConfig } from './config.js';
import { SupervisedThread } from './supervised-thread.js';

const ENTRY = new URL('../capture/mirror/worker.js', import.meta.url);
const EMPTY = Buffer.alloc(0);

export interface MirrorThreadOptions {
  readonly config: ResolvedConfig;
  readonly log: Log;
  readonly clock: Clock;
  /** Rejects where no shadow takes it: everything is then told as lost. */
  readonly touched: (touched: TouchedRows) => Promise<void>;
}

/** Only where the shadow is to follow by it: it costs a thread, and its parser's memory. Throws `config-invalid`. */
export function mirrorOf(
  parts: Omit<MirrorThreadOptions, 'touched'>,
  touched: MirrorThreadOptions['touched'],
): MirrorThread | undefined {
  const { enabled, method } = parts.config.shadow;
  if (!enabled || method !== 'mirror') return undefined;
  if (parts.config.proxy.workers > 1) {
    throw new UnderstudyError('config-invalid', 'what passes the proxy is mirrored by one process alone', {
      advice: 'Set proxy.workers to 1, or shadow.method to poll.',
    });
  }
  return new MirrorThread({ ...parts, touched });
}

export class MirrorThread {
  readonly #tap: RingTap;
  readonly #thread: SupervisedThread<null>;

  constructor({ config, log, clock, touched }: MirrorThreadOptions) {
    const ring = createByteRing(config.shadow.mirrorRingBytes);
    this.#tap = new RingTap(new ByteRingWriter(ring), config.capture.textBytesMax);
    const workerData: MirrorWorkerData = { ring, source: config.source };
    this.#thread = new SupervisedThread({
      name: 'mirror',
      entry: ENTRY,
      workerData,
      attach: (worker) => {
        serveThreadCalls(worker, { touched: (rows: TouchedRows) => touched(rows) });
        return null;
      },
      begin: () => Promise.resolve(),
      detach: () => undefined,
      log,
      clock,
    });
  }

  /** Both get every statement. `next` gets the parameters only where it asked for them. */
  tap(next: StatementTap | null, nextTakesParameters: boolean): StatementTap {
    const mirror = this.#tap;
    return {
      // Neither answered nor in a known transaction: it is kept with those that are open.
      unanswered: (session, text, parameters) => {
        mirror.offer(session, text, 0, 0, 0, 0, true, 0, 0, 0, parameters);
      },
      skipped: () => next?.skipped?.(),
      offer: (session, text, micros, rows, up, down, failed, status, ended, errorClass, parameters) => {
        mirror.offer(session, text, micros, rows, up, down, failed, status, ended, errorClass, parameters);
        if (next === null) return true;
        const passed = nextTakesParameters ? parameters : EMPTY;
        return next.offer(session, text, micros, rows, up, down, failed, status, ended, errorClass, passed);
      },
    };
  }

  start(): void {
    this.#thread.start();
  }

  async stop(): Promise<void> {
    await this.#thread.stop();
  }
}
