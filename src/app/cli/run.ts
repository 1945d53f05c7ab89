import { asUnderstudyError } from '../../core/errors.js';
import { createLog, type LeveledLog, type Log } from '../../core/log.js';
import { redact, type ResolvedConfig } from '../config.js';
import { endpointText } from '../config/endpoint.js';
import { reportRecording, startRecorder, type RunOptions } from '../recording/run-recording.js';
import { startUnderstudy, type Understudy } from '../understudy.js';
import { EXIT, type ExitCode } from './exit-codes.js';
import type { Terminal } from './terminal.js';

/** npm hands on a terminal's Ctrl-C that has arrived already: a second one within it is the first one's echo. */
const ECHO_MS = 500;

/**
 * The whole sidecar, until SIGTERM or SIGINT: clients may finish what they are at, then it ends. A second signal
 * ends it at once; that loses nothing, because whatever it was doing is journaled. SIGHUP reads the configuration again.
 */
export async function runProcess(
  terminal: Terminal,
  load: () => ResolvedConfig,
  options: RunOptions,
): Promise<ExitCode> {
  const config = load();
  const log = createLog(config.log.level);
  log.debug({ config: redact(config) }, 'configuration');
  const stopRequested = listenForSignals(log);
  const recorder = await startRecorder(options, log);
  const understudy = await startUnderstudy(config, {
    log,
    ...(recorder === undefined ? {} : { recorder }),
  });
  process.on('SIGHUP', () => reload(understudy, log, load));
  terminal.line(`understudy ${understudy.version}: listening on ${config.listen.host}:${understudy.port}`);
  terminal.line(`  source       ${endpointText(config.source)}`);
  terminal.line(`  destination  ${endpointText(config.destination)}`);
  terminal.line(`  admin        ${understudy.adminUrl}`);
  if (recorder !== undefined)
    terminal.line(`  recording    ${options.record ?? ''}: holds all values clients send`);
  terminal.line('Point applications here; `understudy status --watch` shows how it goes. Ctrl-C stops it.');
  const signal = await stopRequested;
  log.info({ signal }, 'stopping; a second signal ends at once');
  await understudy.stop();
  if (recorder !== undefined) terminal.line(reportRecording(recorder.status));
  terminal.result({ stopped: signal, ...(recorder === undefined ? {} : { recording: recorder.status }) });
  return EXIT.ok;
}

/** A configuration with a mistake in it is refused as a whole, and nothing changes. */
function reload(understudy: Understudy, log: LeveledLog, load: () => ResolvedConfig): void {
  try {
    const wanted = load();
    const { applied, needRestart } = understudy.reload(wanted);
    log.setLevel(wanted.log.level);
    log.info({ applied }, applied.length === 0 ? 'SIGHUP: nothing to take over' : 'SIGHUP: taken over');
    if (needRestart.length > 0)
      log.warn({ needRestart }, 'SIGHUP: these keys count from the next start only');
  } catch (error) {
    const { code, message } = asUnderstudyError(error, 'internal', 'reading the configuration');
    log.error({ code, problems: message.split('\n') }, 'SIGHUP: refused, everything stays as it is');
  }
}

/** Resolves with the first SIGTERM or SIGINT. */
function listenForSignals(log: Log): Promise<string> {
  let firstAt: number | undefined;
  // Before there is anything to reload it for, SIGHUP must not end the process.
  process.on('SIGHUP', () => undefined);
  // What nobody caught is a bug: better to end, and recover from the journal, than to go on half broken.
  process.on('uncaughtException', (error) => {
    log.error({ error: error.message, stack: error.stack }, 'uncaught error: ending');
    process.exit(EXIT.internal);
  });
  return new Promise((resolve) => {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) {
      process.on(signal, () => {
        const now = performance.now();
        if (firstAt === undefined) {
          firstAt = now;
          resolve(signal);
        } else if (now - firstAt > ECHO_MS) {
          log.warn({ signal }, 'second signal: ending at once');
          process.exit(EXIT.interrupted);
        }
      });
    }
  });
}
