/** The recording of `understudy run`. */
import { systemClock } from '../../core/clock.js';
import type { Log } from '../../core/log.js';
import { VERSION } from '../version.js';
import { RECORDER_QUEUE_BYTES_MAX, Recorder, type RecorderStatus } from './recorder.js';

export interface RunOptions {
  /** Record what clients send to this file. */
  readonly record: string | undefined;
  /** 0: no bound. */
  readonly recordMaxBytes: number;
}

/** Throws `config-invalid` where the file can't be made, or would stay empty. */
export async function startRecorder(options: RunOptions, log: Log): Promise<Recorder | undefined> {
  if (options.record === undefined) return undefined;
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
