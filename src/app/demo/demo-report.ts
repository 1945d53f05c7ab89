/** The demo's end: what was measured, in words a person can check. */
import { formatCount, formatMs, table } from '../cli/format.js';
import type { Terminal } from '../cli/terminal.js';
import { faultsOf, type DemoMeasurements } from './demo-outcome.js';

const SPARKS = '▁▂▃▄▅▆▇█';

/** One character for each value, its height relative to the largest. */
export function sparkline(values: readonly number[]): string {
  const most = Math.max(1, ...values);
  return values
    .map((value) => SPARKS[Math.min(SPARKS.length - 1, Math.floor((value / most) * SPARKS.length))] ?? '')
    .join('');
}

export function printReport(terminal: Terminal, measured: DemoMeasurements, firstVersion: string): void {
  const heading = (text: string): void => terminal.line(`\n${terminal.paint('bold', text)}`);
  heading('What the clients saw');
  for (const line of clientLines(measured, firstVersion)) terminal.line(`  ${line}`);
  heading('What each switch cost');
  for (const line of switchTable(measured)) terminal.line(`  ${line}`);
  heading('What the auditor found (its own connections, its own code)');
  for (const line of auditLines(measured)) terminal.line(`  ${line}`);
  const { verify } = measured;
  heading('What verify found');
  terminal.line(
    `  ${formatCount(verify.rows)} rows in ${verify.tables} tables compared, ${formatCount(verify.mismatches)} differ`,
  );
  const faults = faultsOf(measured);
  terminal.line();
  if (faults.length === 0) {
    terminal.line(
      terminal.paint(
        'green',
        `Nothing lost, nothing duplicated, nothing failed. ${measured.seconds.toFixed(1)} s in all.`,
      ),
    );
  } else {
    terminal.line(terminal.paint('red', 'Not as it should be:'));
    for (const fault of faults) terminal.line(terminal.paint('red', `  ${fault}`));
  }
}

function clientLines(measured: DemoMeasurements, firstVersion: string): readonly string[] {
  const { snapshot, latency } = measured.load;
  const { notifications } = snapshot;
  const versions = [
    firstVersion,
    ...measured.switches.map(({ sessions }) => Object.keys(sessions.versions).join(' and ')),
  ];
  const perSecond = Math.round(snapshot.transactions / snapshot.seconds);
  return [
    `connections    ${snapshot.connections}, each opened once and held throughout`,
    `server_version ${versions.join(' → ')}, as answered to the same connections`,
    `transactions   ${formatCount(snapshot.transactions)} in ${snapshot.seconds.toFixed(1)} s, ${perSecond} a second`,
    `               ${sparkline(snapshot.perSecond)}`,
    `statements     ${formatCount(snapshot.statements)}, ${snapshot.failed} failed; p50 ${formatMs(latency.p50)}, p99 ${formatMs(latency.p99)}, slowest ${formatMs(latency.max)}`,
    `notifications  ${formatCount(notifications.sent)} sent, ${formatCount(notifications.received)} received, ${notifications.missing} missing, ${notifications.repeated} repeated`,
  ];
}

function switchTable(measured: DemoMeasurements): readonly string[] {
  const rows = measured.switches.map(({ report, window, sessions }) => [
    report.kind === 'cutover' ? 'forward' : 'back',
    Object.keys(sessions.versions).join(', '),
    `${report.stall.held}`,
    formatMs(report.stall.p50),
    formatMs(report.stall.p99),
    formatMs(report.stall.max),
    formatMs(window.max),
    formatMs(report.totalMs),
  ]);
  return table(
    ['switch', 'then on', 'held>', 'stall p50>', 'p99>', 'max>', 'slowest at a client>', 'in all>'],
    rows,
  );
}

function auditLines({ audit }: DemoMeasurements): readonly string[] {
  const unanswered = audit.unanswered.present + audit.unanswered.absent;
  const broken = audit.invariants.filter(({ violations }) => violations > 0).length;
  return [
    `acknowledged   ${formatCount(audit.acknowledged)} writes; found as they must be ${formatCount(audit.found)}, lost ${audit.lost}, duplicated ${audit.duplicated}`,
    ...(unanswered > 0 ? [`unanswered     ${unanswered}, of which ${audit.unanswered.present} stand`] : []),
    `registers      ${audit.registers.checked} rows hold the last value their client was promised, ${audit.registers.wrong} do not`,
    `invariants     ${audit.invariants.length - broken} of ${audit.invariants.length} hold`,
    ...audit.invariants.map(
      ({ name, violations }) => `               ${violations === 0 ? '✓' : '✗'} ${name}`,
    ),
    `writable       ${audit.writable ?? 'not exactly one side'}`,
    ...audit.refusals.map(
      ({ server, probes, sqlStates }) =>
        `refused        ${probes} of ${probes} kinds of write straight to ${server}: ${sqlStates.join(', ')}`,
    ),
  ];
}
