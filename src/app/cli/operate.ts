/** The verbs that have the running process do something: verify, cutover, rollback, finalize, remove, abort. */
import type { OperationReport, ShadowSteering, VerifyReport } from '../../core/ports.js';
import type { Operation, OperationLine, OperationOptions } from '../../admin/control.js';
import { createInterface } from 'node:readline/promises';
import { UnderstudyError } from '../../core/errors.js';
import type { FinalizeReport, RemoveReport } from '../../cutover/settings.js';
import type { AdminClient } from '../admin-client.js';
import { EXIT, type ExitCode } from './exit-codes.js';
import {
  bar,
  findingLines,
  formatBytes,
  formatCount,
  formatDuration,
  formatMs,
  stallHistogram,
} from './format.js';
import type { Terminal } from './terminal.js';

export async function runVerify(
  terminal: Terminal,
  admin: AdminClient,
  options: Pick<OperationOptions, 'direction' | 'tables' | 'subset' | 'repair' | 'resume' | 'value'>,
): Promise<ExitCode> {
  const report = (await operate(terminal, admin, 'verify', options)) as VerifyReport;
  const differing = report.verdicts.filter((verdict) => verdict.mismatches > 0);
  for (const verdict of differing) {
    terminal.line(
      terminal.paint('red', `${verdict.table}: ${verdict.mismatches} of ${verdict.rows} rows differ`),
    );
    for (const key of verdict.differingKeys) terminal.line(`  ${key.difference.padEnd(9)} ${key.key}`);
  }
  const figures = `${formatCount(report.rows)} rows in ${report.tables} tables in ${formatDuration(report.seconds)}`;
  terminal.line(
    report.mismatches === 0
      ? terminal.paint('green', `equal at ${report.position}: ${figures}`)
      : `${report.mismatches} rows differ as of ${report.position}; compared ${figures}`,
  );
  const { repair } = report;
  if (repair !== undefined && report.mismatches > 0) {
    terminal.line(
      repair.remaining === 0
        ? terminal.paint(
            'green',
            `repaired: ${formatCount(repair.rows)} rows in ${repair.tables} tables; equal now`,
          )
        : `repaired ${formatCount(repair.rows)} rows in ${repair.tables} tables; ${repair.remaining} still differ`,
    );
  }
  terminal.result(report);
  return (repair?.remaining ?? report.mismatches) === 0 ? EXIT.ok : EXIT.refused;
}

export async function runShadow(
  terminal: Terminal,
  admin: AdminClient,
  { values, ...rest }: Pick<OperationOptions, 'action' | 'note'> & { readonly values: readonly string[] },
): Promise<ExitCode> {
  const options = { ...rest, ...valuesOf(rest.action, values) };
  const steering = (await operate(terminal, admin, 'shadow', options)) as ShadowSteering;
  const { skipped, paused, intensity, first = [] } = steering;
  if (skipped !== undefined) {
    terminal.line(
      `skipped: the ${skipped.kind} in ${skipped.table} at ${skipped.position} (SQLSTATE ${skipped.sqlState}). ` +
        'Mend its row with `understudy verify --repair`.',
    );
  }
  const flush = formatDuration(steering.flushIntervalMs / 1000);
  terminal.line(
    `the copy is ${paused ? 'paused' : 'not paused'}; intensity ${intensity}, changes are written within ${flush}`,
  );
  if (first.length > 0) terminal.line(`copied first: ${first.join(', ')}`);
  terminal.result(steering);
  return EXIT.ok;
}

/** Throws `request-invalid` for values that the action does not take. */
function valuesOf(
  action: OperationOptions['action'],
  values: readonly string[],
): Pick<OperationOptions, 'value' | 'tables'> {
  if (action === 'prioritise') return { tables: values };
  const [value] = values;
  if (value === undefined) return {};
  const number = Number(value);
  if (action !== 'intensity' || values.length > 1 || value.trim() === '' || Number.isNaN(number)) {
    throw new UnderstudyError('request-invalid', `shadow ${action ?? ''} does not take ${values.join(' ')}`, {
      advice: 'Look at `understudy shadow --help`.',
    });
  }
  return { value: number };
}

export async function runSwitch(
  terminal: Terminal,
  admin: AdminClient,
  kind: 'cutover' | 'rollback',
  options: Pick<OperationOptions, 'dryRun' | 'subset'>,
): Promise<ExitCode> {
  const report = (await operate(terminal, admin, kind, options)) as OperationReport;
  printSwitch(terminal, report);
  terminal.result(report);
  if (report.outcome === 'done') return EXIT.ok;
  if (report.outcome === 'dry-run')
    return report.findings.some((finding) => finding.severity === 'blocker') ? EXIT.refused : EXIT.ok;
  return EXIT.refused;
}

/** The shadow goes on after a change of the source's schema that a person had to decide on. */
export async function runResume(
  terminal: Terminal,
  admin: AdminClient,
  options: Pick<OperationOptions, 'recopy'>,
): Promise<ExitCode> {
  const result = await operate(terminal, admin, 'resume', options);
  terminal.line(terminal.paint('green', 'the shadow goes on; `understudy status` shows how far it is'));
  terminal.result(result);
  return EXIT.ok;
}

/** Shared with the demo. */
export function printSwitch(terminal: Terminal, report: OperationReport): void {
  // What is merely good to know was said by the dry run.
  const shown = report.findings.filter(
    ({ severity }) => report.outcome === 'dry-run' || severity === 'blocker' || severity === 'warning',
  );
  for (const line of findingLines(shown)) terminal.line(line);
  switch (report.outcome) {
    case 'done':
      terminal.line(
        terminal.paint(
          'green',
          `${report.kind}${ofSubsets(report)} done in ${formatMs(report.totalMs)}: epoch ${report.epoch}, ${report.moved} sessions moved, ${report.closed} closed`,
        ),
      );
      for (const line of stallHistogram(report.stall)) terminal.line(`  ${line}`);
      return;
    case 'dry-run':
      terminal.line(
        report.findings.some((finding) => finding.severity === 'blocker')
          ? `a ${report.kind} would be refused now: see the blockers`
          : terminal.paint('green', `a ${report.kind}${ofSubsets(report)} could go ahead now`),
      );
      return;
    case 'aborted':
      terminal.line(terminal.paint('yellow', `${report.kind} aborted: everything is as it was before`));
      if (report.reason !== undefined) {
        terminal.line(`  ${report.reason.code}: ${report.reason.message}`);
        if (report.reason.advice !== undefined) terminal.line(`  → ${report.reason.advice}`);
      }
      return;
    default:
      report.outcome satisfies never;
  }
}

function ofSubsets({ subsets }: OperationReport): string {
  return subsets === undefined ? '' : ` of ${subsets.join(', ')}`;
}

/** The destination is gone for good: the source leads again, without what had not been carried back yet. */
export async function runDestinationLost(
  terminal: Terminal,
  admin: AdminClient,
  options: { readonly yes: boolean; readonly note: string | undefined; readonly subset: string | undefined },
): Promise<ExitCode> {
  if (!options.yes) {
    const { shadow } = await admin.status();
    const reverse = shadow.streams.find((stream) => stream.direction === 'reverse');
    const behind =
      reverse?.lagBytes == null || reverse.lagMs === null
        ? 'How much that is, is not known.'
        : `When last seen, the way back was ${formatBytes(reverse.lagBytes)} and ${formatMs(reverse.lagMs)} behind.`;
    terminal.line('Writes made to the destination and not yet carried back to the source will be lost.');
    terminal.line(behind);
    await confirm(terminal, 'The destination will never be trusted again. Type yes to go on: ');
  }
  const result = (await operate(terminal, admin, 'rollback', {
    destinationLost: true,
    ...(options.note === undefined ? {} : { note: options.note }),
    ...(options.subset === undefined ? {} : { subset: options.subset }),
  })) as { readonly epoch: number };
  terminal.line(`the source leads again, at epoch ${result.epoch}; the destination counts as lost`);
  terminal.result(result);
  return EXIT.ok;
}

export async function runFinalize(
  terminal: Terminal,
  admin: AdminClient,
  options: { readonly yes: boolean; readonly removeFence: boolean; readonly sourceLost: boolean },
): Promise<ExitCode> {
  if (!options.yes)
    await confirm(
      terminal,
      'finalize removes the way back: the source is retired and no longer followed. Type yes to go on: ',
    );
  const report = await operate(terminal, admin, 'finalize', {
    removeFence: options.removeFence,
    sourceLost: options.sourceLost,
  });
  const { removed, fence, foreignKeys } = report as Partial<FinalizeReport>;
  for (const what of removed ?? []) terminal.line(`  removed ${what}`);
  for (const left of foreignKeys ?? []) terminal.line(terminal.paint('yellow', `  ${left}`));
  terminal.line(terminal.paint('green', `finalized; the source's fence is ${fence ?? 'kept'}`));
  terminal.result(report);
  return EXIT.ok;
}

/** The migration is given up or to be begun anew, while the source leads; or it is over, after `finalize`. */
export async function runRemove(
  terminal: Terminal,
  admin: AdminClient,
  options: { readonly yes: boolean; readonly destinationLost: boolean },
): Promise<ExitCode> {
  const { source, destination, cutover } = await admin.status();
  const over = cutover?.finalized === true;
  if (!options.yes)
    await confirm(
      terminal,
      over
        ? `remove takes the journal and the kept series off ${destination}. Type yes to go on: `
        : `remove gives the shadow up: the copy in ${destination} is no longer followed nor guarded. Type yes to go on: `,
    );
  const report = (await operate(terminal, admin, 'remove', {
    destinationLost: options.destinationLost,
  })) as RemoveReport;
  for (const what of report.removed) terminal.line(`  removed ${what}`);
  for (const left of report.foreignKeys ?? []) terminal.line(terminal.paint('yellow', `  ${left}`));
  const leader = over ? destination : source;
  terminal.line(terminal.paint('green', `removed; clients go on through the proxy to ${leader}`));
  terminal.line(
    over
      ? `  → Point the applications straight at ${destination}, then stop Understudy.`
      : `  → To begin anew: drop and create the database of ${destination}, then restart Understudy. To give it up: point the applications at the source.`,
  );
  terminal.result(report);
  return EXIT.ok;
}

export async function runAbort(terminal: Terminal, admin: AdminClient): Promise<ExitCode> {
  const result = (await operate(terminal, admin, 'abort', {})) as { readonly aborted: boolean };
  terminal.line(
    result.aborted
      ? 'abort asked for: the operation undoes itself'
      : 'nothing to abort: no operation runs, or it is past its point of no return',
  );
  terminal.result(result);
  return result.aborted ? EXIT.ok : EXIT.refused;
}

export async function confirm(terminal: Terminal, question: string): Promise<void> {
  if (!process.stdin.isTTY)
    throw new UnderstudyError(
      'config-invalid',
      'this needs a confirmation, and there is no terminal to ask on',
      {
        advice: 'Add --yes.',
      },
    );
  const prompt = createInterface({ input: process.stdin, output: process.stderr });
  try {
    const answer = await prompt.question(terminal.paint('yellow', question));
    if (answer.trim() !== 'yes') throw new UnderstudyError('cancelled', 'not confirmed; nothing was done');
  } finally {
    prompt.close();
  }
}

export async function operate(
  terminal: Terminal,
  admin: AdminClient,
  operation: Operation,
  options: OperationOptions,
): Promise<unknown> {
  return admin.operate(operation, options, (line) => printLine(terminal, line));
}

/** One event of an operation's stream. Shared with the demo. */
export function printLine(terminal: Terminal, line: OperationLine): void {
  if (!('event' in line)) return;
  switch (line.event) {
    case 'step':
      if (line.phase === 'start') terminal.transient(`  … ${line.step}`);
      else
        terminal.line(
          `  ${terminal.paint('green', '✓')} ${line.step.padEnd(12)} ${formatMs(line.ms ?? 0).padStart(10)}`,
        );
      return;
    case 'verify-progress': {
      const { table, tablesDone, tablesTotal, rows } = line.progress;
      const share = tablesTotal === 0 ? 0 : tablesDone / tablesTotal;
      terminal.transient(
        `  ${bar(share, 24)} ${tablesDone}/${tablesTotal} tables, ${formatCount(rows)} rows: ${table}`,
      );
      return;
    }
    case 'log':
      terminal.line(`  ${line.message}`);
      return;
    case 'finding':
    case 'report':
      return;
    default:
      line satisfies never;
  }
}
