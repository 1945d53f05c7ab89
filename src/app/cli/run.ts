import type { ResolvedConfig } from '../config.js';
import { redact } from '../config.js';
import { endpointText } from '../config/endpoint.js';
import { createLog } from '../../core/log.js';
import { startUnderstudy } from '../understudy.js';
import { EXIT, type ExitCode } from './exit-codes.js';
import type { Terminal } from './terminal.js';

/**
 * The whole sidecar, until SIGTERM or SIGINT: clients may finish what they are at, then it ends. A second signal
 * ends it at once; that loses nothing, because whatever it was doing is journaled.
 */
export async function runProcess(terminal: Terminal, config: ResolvedConfig): Promise<ExitCode> {
  const log = createLog(config.log.level);
  log.debug({ config: redact(config) }, 'configuration');
  let stopping = false;
  const stopRequested = new Promise<string>((resolve) => {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) {
      process.on(signal, () => {
        if (stopping) {
          log.warn({ signal }, 'second signal: ending at once');
          process.exit(EXIT.interrupted);
        }
        stopping = true;
        resolve(signal);
      });
    }
  });
  process.on('SIGHUP', () =>
    log.info({}, 'SIGHUP: the configuration is read at start only; restart to change it'),
  );
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
