/**
 * The shadow's thread. Serves the engine's calls on the parent's port, and calls back for what only the main thread
 * can do: raising the write guard between the schema and the first row.
 *
 * `workerData` is {@link ShadowWorkerData}. The thread ends by `process.exit` of nobody: after `stop`, its connections
 * and timers are gone, and the parent terminates it.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { systemClock } from '../core/clock.js';
import { UnderstudyError } from '../core/errors.js';
import { createLog, type LogLevel } from '../core/log.js';
import type {
  Direction,
  ExactRequest,
  LatencyWindow,
  ResumeOptions,
  ShadowCommand,
  Side,
  SubsetId,
  TouchedRows,
  VerifyOptions,
} from '../core/ports.js';
import { serveThreadCalls, ThreadCaller, type ThreadHandler } from '../core/thread-call.js';
import { Shadow } from './shadow.js';
import type { ShadowOptions } from './settings.js';

export interface ShadowWorkerData {
  readonly options: ShadowOptions;
  readonly logLevel: LogLevel;
}

function engineHandlers(engine: Shadow): Readonly<Record<string, ThreadHandler>> {
  return {
    start: () => engine.start(),
    stop: () => engine.stop(),
    status: () => engine.status(),
    tables: (subset: SubsetId | undefined) => engine.tables(subset),
    touched: (rows: TouchedRows) => engine.touched(rows),
    latency: (window: LatencyWindow) => engine.latency(window),
    waitForMark: (
      argument: { direction: Direction; markId: string; subsets?: readonly SubsetId[] },
      { signal },
    ) => engine.waitForMark(argument.direction, argument.markId, signal, argument.subsets),
    verify: (options: VerifyOptions, { signal, progress }) => engine.verify(options, signal, progress),
    verifyRecent: (argument: { direction: Direction; subset?: SubsetId }, { signal }) =>
      engine.verifyRecent(argument.direction, signal, argument.subset),
    builtFingerprint: (side: Side) => engine.builtFingerprint(side),
    prepareReverse: (_: never, { signal }) => engine.prepareReverse(signal),
    measureExact: (request: ExactRequest, { signal }) => engine.measureExact(request, signal),
    steer: (command: ShadowCommand) => engine.steer(command),
    conflicts: (limit: number) => engine.conflicts(limit),
    analyze: (side: Side, { signal }) => engine.analyze(side, signal),
    resume: (options: ResumeOptions, { signal }) => engine.resume(options, signal),
  };
}

function main(): void {
  const port = parentPort;
  if (port === null) throw new UnderstudyError('internal', 'the shadow’s worker needs a parent');
  const { options, logLevel } = workerData as ShadowWorkerData;
  const parent = new ThreadCaller(port);
  const engine = new Shadow(options, {
    log: createLog(logLevel),
    clock: systemClock,
    afterSchemaBuilt: (tables) => parent.call<void>('afterSchemaBuilt', tables),
    onPhase: (phase) => void parent.call<void>('onPhase', phase).catch(() => undefined),
  });
  serveThreadCalls(port, engineHandlers(engine));
}

main();
