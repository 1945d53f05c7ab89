/** `understudy bench replay FILE --against URL`: what a recording's clients did, done again elsewhere. */
import { setMaxListeners } from 'node:events';
import { UnderstudyError } from '../../core/errors.js';
import type { DatabaseEndpoint } from '../../core/ports.js';
import type { ResolvedConfig } from '../config.js';
import { endpointText, isLoopback, parseDatabaseUrl } from '../config/endpoint.js';
import type { LatencyPair } from '../replay/comparison.js';
import { guardTarget } from '../replay/guard.js';
import {
  RecordingFile,
  chooseDatabase,
  scanRecording,
  type RecordingScan,
} from '../replay/recording-file.js';
import { Replay, type ReplayReport } from '../replay/replay.js';
import { EXIT, type ExitCode } from './exit-codes.js';
import { formatBytes, formatCount, formatDuration, formatMs, table } from './format.js';
import type { Terminal } from './terminal.js';

export interface ReplayVerb {
  readonly file: string;
  readonly against: string | undefined;
  readonly speed: string;
  readonly sessions: number | undefined;
  readonly database: string | undefined;
  readonly dryRun: boolean;
  readonly yesWrite: boolean;
  readonly answerTimeoutMs: number;
}

const PROGRESS_EVERY_MS = 500;

/** `config`: reads the migration's configuration, null where there is none. */
export async function runReplay(
  terminal: Terminal,
  verb: ReplayVerb,
  config: () => ResolvedConfig | null,
): Promise<ExitCode> {
  const speed = readSpeed(verb.speed);
  const target = verb.against === undefined ? undefined : readTarget(verb.against);
  if (target === undefined && !verb.dryRun)
    throw new UnderstudyError('config-invalid', 'name the server to replay against: --against postgres://…', {
      advice: 'A replay writes what was written: make a copy for it. --dry-run only looks at the recording.',
    });
  await using file = await RecordingFile.open(verb.file);
  const scan = await scanRecording(file);
  printScan(terminal, file, scan);
  if (verb.dryRun || target === undefined) {
    terminal.result({ recording: summary(file, scan) });
    return EXIT.ok;
  }
  chooseDatabase(scan, verb.database);
  const sides = config();
  if (!verb.yesWrite) await guardTarget(target, sides);
  terminal.line(`replaying against ${endpointText(target)}: what was written is written there again`);
  const stop = new AbortController();
  // Every session, and every connection being opened, listens to it.
  setMaxListeners(0, stop.signal);
  const onSignal = (): void => stop.abort(new UnderstudyError('cancelled', 'the replay was stopped'));
  process.on('SIGINT', onSignal);
  const replay = new Replay(file, scan, {
    endpoint: target,
    speed,
    sessionsMax: verb.sessions ?? Infinity,
    answerTimeoutMs: verb.answerTimeoutMs,
    signal: stop.signal,
  });
  const progress = setInterval(() => terminal.transient(progressLine(replay)), PROGRESS_EVERY_MS);
  try {
    const report = await replay.run();
    printReport(terminal, report);
    terminal.result({ recording: summary(file, scan), ...report });
    return report.sessions.failed === 0 ? EXIT.ok : EXIT.refused;
  } finally {
    clearInterval(progress);
    process.off('SIGINT', onSignal);
  }
}

function readSpeed(text: string): number | 'max' {
  if (text === 'max') return 'max';
  const speed = Number(text);
  if (Number.isFinite(speed) && speed > 0) return speed;
  throw new UnderstudyError('config-invalid', `--speed ${text}: expected a number above 0, or max`);
}

function readTarget(url: string): DatabaseEndpoint {
  const parsed = parseDatabaseUrl(url);
  if (typeof parsed === 'string') throw new UnderstudyError('config-invalid', `--against: ${parsed}`);
  if (parsed.tlsCaFile !== undefined)
    throw new UnderstudyError('config-invalid', '--against: sslrootcert is not supported here');
  const password = parsed.endpoint.password ?? process.env['PGPASSWORD'];
  return {
    ...parsed.endpoint,
    ...(password === undefined ? {} : { password }),
    tls: parsed.tls ?? (isLoopback(parsed.endpoint.host) ? 'disable' : 'verify-full'),
  };
}

function summary(file: RecordingFile, scan: RecordingScan): object {
  return {
    startedAt: file.header.startedAt,
    writer: file.header.writer,
    bytes: file.bytes,
    seconds: scan.durationMicros / 1e6,
    sessions: scan.sessions.size,
    concurrentSessions: scan.concurrentSessions,
    incompleteSessions: scan.incompleteSessions,
    statements: scan.statements,
    errors: scan.errors,
    clientBytes: scan.clientBytes,
    tornBytes: scan.tornBytes,
    ended: scan.ended,
  };
}

function printScan(terminal: Terminal, file: RecordingFile, scan: RecordingScan): void {
  terminal.line(
    `recorded ${file.header.startedAt}, ${formatDuration(scan.durationMicros / 1e6)}: ${formatCount(scan.sessions.size)} sessions ` +
      `(${scan.concurrentSessions} at a time), ${formatCount(scan.statements)} statements, ${formatCount(scan.errors)} of them failed`,
  );
  if (scan.incompleteSessions > 0)
    terminal.line(
      terminal.paint(
        'yellow',
        `  ${scan.incompleteSessions} sessions are incomplete: cut at their last whole transaction`,
      ),
    );
  if (scan.tornBytes > 0)
    terminal.line(
      terminal.paint('yellow', `  the file’s last ${formatBytes(scan.tornBytes)} are torn, and left out`),
    );
}

function progressLine(replay: Replay): string {
  const { share, statements, sessionsOpen, lateMs } = replay.progress;
  const late = lateMs > 100 ? `, ${formatMs(lateMs)} late` : '';
  return `${(share * 100).toFixed(0)} %  ${formatCount(statements)} statements, ${sessionsOpen} sessions${late}`;
}

function printReport(terminal: Terminal, report: ReplayReport): void {
  const { comparison, sessions } = report;
  terminal.line(
    `replayed ${formatCount(comparison.statements)} statements of ${formatCount(sessions.replayed)} sessions in ${formatDuration(report.seconds)}`,
  );
  if (report.lateMsMax > 100)
    terminal.line(
      terminal.paint('yellow', `  up to ${formatMs(report.lateMsMax)} behind the recorded times`),
    );
  for (const { session, error } of report.failures)
    terminal.line(terminal.paint('red', `  session ${session}: ${error.code}: ${error.message}`));
  const row = (name: string, pair: LatencyPair): readonly string[] => [
    name,
    formatCount(pair.statements),
    ...(['p50', 'p90', 'p99'] as const).flatMap((quantile) => [
      formatMs(pair.recordedMs[quantile]),
      formatMs(pair.replayedMs[quantile]),
    ]),
  ];
  const heads = [
    'kind',
    'statements>',
    'p50 rec.>',
    'replayed>',
    'p90 rec.>',
    'replayed>',
    'p99 rec.>',
    'replayed>',
  ];
  const rows = [row('all', comparison.all), ...comparison.kinds.map((pair) => row(pair.kind, pair))];
  for (const line of table(heads, rows)) terminal.line(line);
  terminal.line('slowest by p99, as replayed');
  for (const pair of comparison.slowest)
    terminal.line(
      `  ${formatMs(pair.recordedMs.p99).padStart(10)} → ${formatMs(pair.replayedMs.p99).padStart(10)}  ${pair.shape.slice(0, 90)}`,
    );
  printDifferences(terminal, report);
}

function printDifferences(terminal: Terminal, { comparison }: ReplayReport): void {
  const { differing, onlyRecorded, onlyReplayed } = comparison;
  const all = Object.values(differing).reduce((sum, count) => sum + count, 0);
  if (all + onlyRecorded + onlyReplayed === 0) {
    terminal.line(terminal.paint('green', 'every statement had as many rows, and the same error or none'));
    return;
  }
  terminal.line(
    terminal.paint(
      'yellow',
      `${all} statements went otherwise: ${differing.rows} with other row counts, ${differing['failed-now']} failed now, ` +
        `${differing['succeeded-now']} succeeded now, ${differing['other-error']} with other errors`,
    ),
  );
  if (onlyRecorded + onlyReplayed > 0)
    terminal.line(`  ${onlyRecorded} recorded and not replayed, ${onlyReplayed} replayed and not recorded`);
  for (const { session, statement, difference, shape, recorded, replayed } of comparison.first)
    terminal.line(
      `  session ${session}, statement ${statement}: ${difference}: ${recorded.errorClass ?? recorded.rows} → ` +
        `${replayed.errorClass ?? replayed.rows}  ${shape.slice(0, 80)}`,
    );
}
