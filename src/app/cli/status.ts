import { setTimeout as sleep } from 'node:timers/promises';
import type { StatusReport } from '../../admin/control.js';
import type { ShadowStatus, StreamStatus, TableProgress, ThrottleStatus } from '../../core/ports.js';
import type { Route } from '../../core/traffic-ports.js';
import type { CutoverStatus, ForeignKeySideStatus, ForeignKeyStatus } from '../../cutover/settings.js';
import type { AdminClient } from '../admin-client.js';
import { borderLines } from './border-lines.js';
import { EXIT, type ExitCode } from './exit-codes.js';
import { bar, formatBytes, formatCount, formatDuration, formatMs, table } from './format.js';
import type { Terminal } from './terminal.js';

const WATCH_INTERVAL_MS = 1000;
const WARNINGS_SHOWN = 5;

export async function runStatus(
  terminal: Terminal,
  admin: AdminClient,
  options: { readonly watch: boolean },
): Promise<ExitCode> {
  if (!options.watch) {
    const status = await admin.status();
    for (const line of statusLines(status)) terminal.line(line);
    terminal.result(status);
    return exitOf(status);
  }
  let last: StatusReport | undefined;
  const stop = new AbortController();
  process.once('SIGINT', () => {
    stop.abort();
  });
  while (!stop.signal.aborted) {
    last = await admin.status();
    // Under --json a watch is a stream of lines, for scripts.
    if (terminal.json) terminal.result(last);
    else {
      const screen = statusLines(last).join('\n');
      terminal.line(terminal.interactive ? `\x1b[2J\x1b[H${screen}` : `${screen}\n`);
    }
    await sleep(WATCH_INTERVAL_MS, undefined, { signal: stop.signal }).catch(() => undefined);
  }
  return EXIT.ok;
}

/** An operation in doubt, or an unknown route, is for somebody to look at. */
function exitOf(status: StatusReport): ExitCode {
  return status.route === null ? EXIT.attention : EXIT.ok;
}

export function statusLines(status: StatusReport): readonly string[] {
  const { route } = status;
  const where =
    route === null
      ? 'not known which side leads'
      : status.proxy.armed === true
        ? 'the sides lead different subsets'
        : `${route.side} leads (epoch ${route.epoch})`;
  return [
    `understudy ${status.version}, migration ${status.migration}, up ${formatDuration(status.uptimeSeconds)}`,
    `route        ${where}${status.ready.ready ? '' : `; not ready: ${status.ready.reason ?? ''}`}`,
    `source       ${status.source}`,
    `destination  ${status.destination}`,
    `proxy        ${proxyText(status.proxy)}`,
    ...shadowLines(status),
    ...cutoverLines(status.cutover),
    ...(status.borders == null || status.borders.borders.length === 0
      ? []
      : ['ties', ...borderLines(status.borders.borders)]),
    ...autopilotLines(status.autopilot),
    ...captureLines(status),
  ];
}

function proxyText(proxy: StatusReport['proxy']): string {
  const { state, host, port, sessions, passedThrough, bySide, connections, gates, unavailable } = proxy;
  const others = passedThrough === 0 ? '' : `, ${passedThrough} on other databases`;
  const gate = Object.values(gates)
    .map((each) => (each.state === 'open' ? 'gate open' : `gate ${each.state}, ${each.held} held`))
    .join(', ');
  return [
    `${state} on ${host}:${port}`,
    `${sessions} sessions (${bySide.source} on the source, ${bySide.destination} on the destination${others})`,
    `${connections.accepted} accepted and ${connections.refused} refused so far`,
    gate,
    ...(unavailable === null ? [] : [`refusing clients: ${unavailable}`]),
  ].join(', ');
}

function shadowLines({ shadow, route }: StatusReport): readonly string[] {
  const lines = [`shadow       ${shadow.phase}`];
  if (shadow.error !== null) {
    lines.push(`             ${shadow.error.code}: ${shadow.error.message}`);
    if (shadow.error.advice !== undefined) lines.push(`             → ${shadow.error.advice}`);
  }
  for (const warning of (shadow.warnings ?? []).slice(0, WARNINGS_SHOWN))
    lines.push(`             ${warning.code}: ${warning.message}`);
  const hidden = (shadow.warnings ?? []).length - WARNINGS_SHOWN;
  if (hidden > 0) lines.push(`             and ${hidden} more warnings: see --json`);
  if (shadow.phase === 'copying') lines.push(...copyLines(shadow.tables), ...paceLines(shadow.steering));
  lines.push(...methodLines(shadow.method));
  for (const stream of shadow.streams)
    lines.push(`  ${stream.direction.padEnd(11)}${streamText(stream, route)}`);
  const { open = 0, unsettled = 0, settled = 0 } = shadow.conflicts ?? {};
  if (open + unsettled + settled > 0)
    lines.push(`conflicts    ${open} open, ${unsettled} unsettled, ${settled} settled: understudy conflicts`);
  const verify = shadow.lastVerify;
  if (verify !== null)
    lines.push(
      `verified     ${formatCount(verify.rows)} rows in ${verify.tables} tables, ${verify.mismatches} differ, ${verify.startedAt}`,
    );
  return lines;
}

/** By the log there is nothing to say: it sees everything. */
function methodLines(status: ShadowStatus['method']): readonly string[] {
  if (status == null || status.method === 'log') return [];
  const { method, reason, compared } = status;
  const whole = compared.wholeMs === null ? '' : `, all of them in ${formatMs(compared.wholeMs)}`;
  return [
    `  by ${method}: ${reason}`,
    `  compared   ${compared.tables} tables${whole}, ${compared.waiting} waiting, ${formatCount(compared.refreshed)} rows mended or in flight`,
  ];
}

function lagText({ lagBytes, lagMs, method }: StreamStatus): string {
  if (lagMs === null) return 'lag unknown';
  if (method !== undefined && method !== 'log') return `looked ${formatMs(lagMs)} ago`;
  return lagBytes === null ? 'lag unknown' : `lag ${formatBytes(lagBytes)}, ${formatMs(lagMs)}`;
}

function streamText(stream: StreamStatus, route: Route | null): string {
  const lag = lagText(stream);
  const leader = stream.direction === 'forward' ? 'source' : 'destination';
  const { leads } = stream;
  const carries = stream.authoritative && route?.side === leader ? 'carries changes' : 'keeps its place';
  const parts = leads === undefined || leads.length === 0 ? 'keeps its place' : `carries ${leads.join(', ')}`;
  const role = leads === undefined ? carries : parts;
  const log = stream.logBytes == null ? '' : `, its slot keeps ${formatBytes(stream.logBytes)} of log`;
  return `${stream.connected ? 'connected' : 'not connected'}, ${role}, ${lag}, ${formatCount(stream.changesApplied)} changes applied${log}`;
}

/** The tables still being copied, largest first; the rest as one figure. */
function copyLines(tables: readonly TableProgress[]): readonly string[] {
  const open = tables
    .filter((progress) => !progress.done)
    .sort((a, b) => b.rowsEstimated - a.rowsEstimated)
    .slice(0, 10);
  return [
    `  ${tables.length - tables.filter((progress) => !progress.done).length} of ${tables.length} tables copied`,
    ...open.map((progress) => {
      const share = progress.rowsEstimated > 0 ? progress.rowsCopied / progress.rowsEstimated : 0;
      return `  ${bar(share, 20)} ${progress.table} ${formatCount(progress.rowsCopied)} of ≈ ${formatCount(progress.rowsEstimated)}`;
    }),
  ];
}

/** What holds the copy back, if anything does. */
function paceLines(steering: ShadowStatus['steering']): readonly string[] {
  if (steering === undefined) return [];
  const { paused, intensity, throttle, first = [] } = steering;
  const lines: string[] = [];
  if (paused) lines.push('  paused: `understudy shadow resume` lets it go on');
  if (intensity < 1) lines.push(`  intensity ${intensity}`);
  if (first.length > 0) lines.push(`  first      ${first.join(', ')}`);
  if (throttle == null || throttle.by === null) return lines;
  const { by, share, latencyP99Ms, latencyTargetMs } = throttle;
  const known = latencyP99Ms !== null && latencyTargetMs !== null;
  const why =
    by === 'latency' && known
      ? `the application’s p99, ${formatMs(latencyP99Ms)} of at most ${formatMs(latencyTargetMs)}`
      : HELD_BY[by];
  lines.push(`  held back to ${Math.round(share * 100)} % by ${why}`);
  return lines;
}

const HELD_BY: Readonly<Record<NonNullable<ThrottleStatus['by']>, string>> = {
  latency: 'the application’s p99',
  active: 'the sessions at work on the source',
  'standby-lag': 'the lag of the source’s standbys',
  'shadow-lag': 'the shadow’s own lag',
  baseline: 'listening to the application without a copy',
};

function cutoverLines(cutover: CutoverStatus | null): readonly string[] {
  if (cutover === null) return [];
  const lines: string[] = [];
  const { running, last, rollback, barriers, journal } = cutover;
  lines.push(
    `barriers     source ${barriers.source}, destination ${barriers.destination}; journal ${journal}`,
  );
  if (running !== null)
    lines.push(`operation    ${running.kind} is running: ${running.state} (${running.step})`);
  if (last !== null) {
    const when = last.finishedAt === null ? '' : ` at ${last.finishedAt}`;
    const why = last.reason === null ? '' : `: ${last.reason}`;
    lines.push(`last         ${last.kind} ${last.state}${when}${why}`);
  }
  for (const each of cutover.subsets ?? []) {
    const fences = `source ${each.barriers.source}, destination ${each.barriers.destination}`;
    lines.push(
      each.unknown === true
        ? `  ${each.subset.padEnd(11)}not served: who leads is not known; barriers ${fences}`
        : `  ${each.subset.padEnd(11)}${each.route.side} leads (epoch ${each.route.epoch}); barriers ${fences}`,
    );
  }
  lines.push(...(cutover.foreignKeys ?? []).flatMap(foreignKeyLines));
  if (cutover.finalized) lines.push('finalized    the source is retired');
  else if (rollback.possible) {
    const how = rollback.lossless ? 'without loss' : `no longer lossless: ${rollback.reason ?? ''}`;
    lines.push(`rollback     possible, ${how}`);
  }
  return lines;
}

/** What to do about one that holds everywhere is nothing. */
function foreignKeyLines(key: ForeignKeyStatus): readonly string[] {
  const { name, table: referring, references, source, destination } = key;
  if (source.state === 'enforced' && destination.state === 'enforced') return [];
  const text = ({ state, since, violations }: ForeignKeySideStatus): string => {
    const found =
      violations === undefined
        ? 'not validated yet'
        : `${violations.rows} rows refer to ${violations.keys} keys that are not there`;
    if (state === 'restored') return `NOT VALID, ${found}`;
    return state === 'unenforced' && since !== undefined ? `unenforced since ${since}` : state;
  };
  return [
    `foreign key  ${name} on ${referring} to ${references}: source ${text(source)}; destination ${text(destination)}`,
    ...Object.entries({ source, destination }).flatMap(([side, { validate }]) =>
      validate === undefined ? [] : [`             → mend those rows, then on the ${side}: ${validate}`],
    ),
  ];
}

function autopilotLines({
  mode,
  verdict,
  plan,
  tuning,
  problem,
}: StatusReport['autopilot']): readonly string[] {
  if (mode === 'off') return ['autopilot    off'];
  const says =
    verdict === null
      ? 'nothing decided yet'
      : `${verdict.kind}${verdict.subset === null ? '' : ` ${verdict.subset}`} (${verdict.code}): ${verdict.reason}`;
  const lines = [`autopilot    ${mode}; ${says}`];
  const best = plan?.windows[0];
  if (best !== undefined)
    lines.push(`  best window ${best.start} to ${best.end}, stall about ${formatMs(best.stallMs.value)}`);
  if (tuning !== null)
    lines.push(`  intensity ${tuning.intensity} since ${tuning.at}, by ${tuning.subset}: ${tuning.reason}`);
  if (problem !== null) lines.push(`  ${problem.code}: ${problem.message}`);
  return lines;
}

function captureLines({ capture }: StatusReport): readonly string[] {
  if (capture === null) return ['capture      off'];
  const lines = [
    `capture      ${formatCount(capture.offered)} statements, ${capture.dropped} not counted, ` +
      `${formatCount(capture.transactions.committed)} transactions committed`,
  ];
  lines.push(...keptLines(capture));
  const busiest = [...capture.tables].sort((a, b) => b.statements - a.statements).slice(0, 12);
  if (busiest.length === 0) return lines;
  const rows = busiest.map((use) => [
    use.table,
    use.kind,
    formatCount(use.statements),
    formatCount(use.rows),
    formatMs(use.latencyMs.p50),
    formatMs(use.latencyMs.p99),
  ]);
  return [
    ...lines,
    ...table(['table', 'kind', 'statements>', 'rows>', 'p50>', 'p99>'], rows).map((line) => `  ${line}`),
  ];
}

/** What was not understood, and what becomes of the series. */
function keptLines({ unparsed, faults, series }: NonNullable<StatusReport['capture']>): readonly string[] {
  const lines: string[] = [];
  if (unparsed + faults > 0) lines.push(`  ${formatCount(unparsed + faults)} statements not understood`);
  if (series === null) return lines;
  const { lastAppendedAt, shed, problem, batchesRefused } = series;
  const when = lastAppendedAt === null ? 'nothing written yet' : `last written ${lastAppendedAt}`;
  const lost = shed.statements === 0 ? '' : `, ${formatCount(shed.statements)} statements given up`;
  const refused = batchesRefused === 0 ? '' : `, ${batchesRefused} batches refused`;
  lines.push(`  kept in the destination: ${when}${lost}${refused}`);
  if (problem !== null) lines.push(`  ${problem.code}: ${problem.message}`);
  return lines;
}
