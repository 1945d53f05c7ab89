/** The recording of `understudy run`. */
import { systemClock } from '../../core/clock.js';
import { UnderstudyError } from '../../core/errors.js';
import type { Log } from '../../core/log.js';
import type { PoolSettings } from '../../proxy/pool/pool-settings.js';
import { VERSION } from '../version.js';
import { RECORDER_QUEUE_BYTES_MAX, Recorder, type RecorderStatus } from './recorder.js';

export interface RunOptions {
  /** Record what clients send to this file. */
  readonly record: string | undefined;
  /** 0: no bound. */
  readonly recordMaxBytes: number;
}

/** Throws `config-invalid` where the file can't be made, or would stay empty. */
export async function startRecorder(
  options: RunOptions,
  pooling: Pick<PoolSettings, 'poolMode'> & { readonly poolModes?: PoolSettings['poolModes'] | undefined },
  log: Log,
): Promise<Recorder | undefined> {
  if (options.record === undefined) return undefined;
  const pooled = [pooling.poolMode, ...Object.values(pooling.poolModes ?? {})].find(
    (mode) => mode !== 'session',
  );
  if (pooled !== undefined) {
    throw new UnderstudyError('config-invalid', `--record can’t be used with pool mode ${pooled}`, {
      advice:
        'Record with `--set proxy.poolMode=session` and no `proxy.poolModes`: only sessions with a connection of their own are recorded.',
    });
  }
  return Recorder.create({
    file: options.record,
    bytesMax: options.recordMaxBytes,
    queueBytesMax: RECORDER_QUEUE_BYTES_MAX,
    log: log.child({ part: 'recording' }),
    nowMs: () => systemClock.monotonicMs(),
    header: { startedAt: systemClock.now().toISOString(), writer: `understudy ${VERSION}` },
  });
}

/** One line for whoever stopped it. */
export function reportRecording({ bytes, sessions, sessionsLost }: RecorderStatus): string {
  const lost = sessionsLost === 0 ? '' : `, ${sessionsLost} of them incomplete`;
  return `recorded ${(bytes / 1e6).toFixed(1)} MB: ${sessions} sessions${lost}`;
}
