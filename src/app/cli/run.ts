import { createLog, type Log } from '../../core/log.js';
import { redact, type ResolvedConfig } from '../config.js';
import { endpointText } from '../config/endpoint.js';
import { startUnderstudy } from '../understudy.js';
import { EXIT, type ExitCode } from './exit-codes.js';
import type { Terminal } from './terminal.js';

/** npm hands on a terminal's Ctrl-C that has arrived already: a second one within it is the first one's echo. */
const ECHO_MS = 500;

/**
 * The whole sidecar, until SIGTERM or SIGINT: clients may finish what they are at, then it ends. A second signal
 * ends it at once; that loses nothing, because whatever it was doing is journaled.
 */
export async function runProcess(terminal: Terminal, config: ResolvedConfig): Promise<ExitCode> {
  const log = createLog(config.log.level);
  log.debug({ config: redact(config) }, 'configuration');
  const stopRequested = listenForSignals(log);
  const understudy = await startUnderstudy(config, { log });
  terminal.line(`understudy ${understudy.version}: listening on ${config.listen.host}:${understudy.port}`);
  terminal.line(`  source       ${endpointText(config.source)}`);
  terminal.line(`  destination  ${endpointText(config.destination)}`);
  terminal.line(`  admin        ${understudy.adminUrl}`);
  terminal.line('Point applications here; `understudy status --watch` shows how it goes. Ctrl-C stops it.');
  const signal = await stopRequested;
  log.info({ signal }, 'stopping; a second signal ends at once');
  await understudy.stop();
  terminal.result({ stopped: signal });
  return EXIT.ok;
}

/** Resolves with the first SIGTERM or SIGINT. */
function listenForSignals(log: Log): Promise<string> {
  let firstAt: number | undefined;
  process.on('SIGHUP', () =>
    log.info({}, 'SIGHUP: the configuration is read at start only; restart to change it'),
  );
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
