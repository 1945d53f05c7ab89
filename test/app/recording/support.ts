/** A sidecar that records, and a replay of what it recorded. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  Recorder,
  RECORDER_QUEUE_BYTES_MAX,
  type RecorderOptions,
} from '../../../src/app/recording/recorder.js';
import { RecordingFile, scanRecording, type RecordingScan } from '../../../src/app/replay/recording-file.js';
import { Replay, type ReplayOptions, type ReplayReport } from '../../../src/app/replay/replay.js';
import type { UnderstudyConfig } from '../../../src/app/config/schema.js';
import { startUnderstudy } from '../../../src/app/understudy.js';
import { createLog } from '../../../src/core/log.js';
import type { DatabaseEndpoint } from '../../../src/core/ports.js';
import type { DatabasePair } from '../../support/servers.js';

export function urlOf(endpoint: DatabaseEndpoint, port = endpoint.port): string {
  return `postgres://${endpoint.user}:${endpoint.password ?? ''}@127.0.0.1:${port}/${endpoint.database}`;
}

export interface Folder extends AsyncDisposable {
  readonly path: string;
}

export async function temporaryFolder(): Promise<Folder> {
  const path = await mkdtemp(join(tmpdir(), 'understudy-recording-'));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

export function newRecorder(file: string, options: Partial<RecorderOptions> = {}): Promise<Recorder> {
  return Recorder.create({
    file,
    bytesMax: 0,
    queueBytesMax: RECORDER_QUEUE_BYTES_MAX,
    log: createLog('silent'),
    nowMs: () => performance.now(),
    header: { startedAt: new Date().toISOString(), writer: 'test' },
    ...options,
  });
}

/** Runs `workload` through a sidecar before `pair`, recording into `file`. */
export async function record(
  pair: DatabasePair,
  recorder: Recorder,
  workload: (url: string) => Promise<void>,
  proxy: UnderstudyConfig['proxy'] = {},
): Promise<void> {
  const understudy = await startUnderstudy(
    {
      listen: { port: 0 },
      admin: { port: 0 },
      log: { level: 'error' },
      source: { url: urlOf(pair.source) },
      destination: { url: urlOf(pair.destination) },
      shadow: { enabled: false },
      capture: { enabled: false },
      proxy,
    },
    { recorder },
  );
  try {
    await workload(urlOf(pair.source, understudy.port));
  } finally {
    await understudy.stop();
  }
}

export async function scan(file: string): Promise<RecordingScan> {
  await using recording = await RecordingFile.open(file);
  return await scanRecording(recording);
}

export async function replay(
  file: string,
  endpoint: DatabaseEndpoint,
  options: Partial<ReplayOptions> = {},
): Promise<ReplayReport> {
  await using recording = await RecordingFile.open(file);
  return await new Replay(recording, await scanRecording(recording), {
    endpoint,
    speed: 'max',
    sessionsMax: Infinity,
    answerTimeoutMs: 30_000,
    signal: new AbortController().signal,
    ...options,
  }).run();
}
