import type { Finding, Side } from '../../core/ports.js';
import { asUnderstudyError, type SerializedError } from '../../core/errors.js';
import { connectControl } from '../../core/postgres.js';
import { inspectDestination, inspectPair, inspectSource } from '../../shadow/postgres/preflight.js';
import type { AdminClient } from '../admin-client.js';
import { clientFindings } from '../client-findings.js';
import type { ResolvedConfig } from '../config.js';
import { endpointText } from '../config/endpoint.js';
import { subsetFindings } from '../subset-findings.js';
import { EXIT, type ExitCode } from './exit-codes.js';
import { findingLines } from './format.js';
import { errorText, type Style, type Terminal } from './terminal.js';

const COLOURS: Readonly<Record<Finding['severity'], Style>> = {
  blocker: 'red',
  warning: 'yellow',
  info: 'cyan',
};

/**
 * Preflight of both databases, straight; no running process is needed, but one that answers at `admin` is asked what
 * its clients use. Changes nothing on either.
 */
export async function runCheck(
  terminal: Terminal,
  config: ResolvedConfig,
  admin: AdminClient,
): Promise<ExitCode> {
  const settings = {
    migrationId: config.migration.id,
    purpose: 'check',
    method: config.shadow.method,
    format: config.shadow.format,
  } as const;
  const opened = await Promise.allSettled(
    (['source', 'destination'] as const).map((side) =>
      connectControl(side, config[side], { purpose: 'check' }),
    ),
  );
  const [source, destination] = opened.map((result) =>
    result.status === 'fulfilled' ? result.value : undefined,
  );
  const errors = opened
    .filter((result) => result.status === 'rejected')
    .map((result) => asUnderstudyError(result.reason, 'internal', 'connecting').toJSON());
  try {
    // What can be said of the one side is worth saying while the other can't be reached.
    const findings =
      source !== undefined && destination !== undefined
        ? await inspectPair(source, destination, settings)
        : source !== undefined
          ? await inspectSource(source, settings)
          : destination !== undefined
            ? await inspectDestination(destination, settings)
            : [];
    const parted = source === undefined ? [] : await subsetFindings(source, config.subsets);
    const used = await clientFindings(admin, config.migration.id, { source, destination });
    return report(terminal, config, [...findings, ...parted, ...used], errors);
  } finally {
    await Promise.allSettled([source?.end(), destination?.end()]);
  }
}

function report(
  terminal: Terminal,
  config: ResolvedConfig,
  findings: readonly Finding[],
  errors: readonly SerializedError[],
): ExitCode {
  const blockers = findings.filter((finding) => finding.severity === 'blocker').length;
  for (const side of ['source', 'destination'] satisfies Side[])
    terminal.line(`${side.padEnd(12)} ${endpointText(config[side])}`);
  terminal.line();
  for (const line of findingLines(findings, (severity, text) => terminal.paint(COLOURS[severity], text)))
    terminal.line(line);
  for (const error of errors) terminal.line(errorText(error).trimEnd());
  if (errors.length > 0) terminal.line('Not everything could be checked.');
  else if (blockers > 0)
    terminal.line(`${blockers} blocker${blockers === 1 ? '' : 's'}: see above for what to do.`);
  else terminal.line(terminal.paint('green', 'Nothing stands in the way. Next: `understudy run`.'));
  terminal.result({ ok: blockers === 0 && errors.length === 0, blockers, findings, errors });
  if (errors.length > 0) return EXIT.usage;
  return blockers > 0 ? EXIT.refused : EXIT.ok;
}
