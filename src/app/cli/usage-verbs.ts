/** How the database is used and what follows from it, as the command line takes it. */
import type { Argv } from 'yargs';
import { FORMAT_NAMES } from '../../capture/import/entry.js';
import { adminOf, configIfAny, configOf, runVerb, type GlobalArguments } from './command.js';

export function usageVerbs(cli: Argv<GlobalArguments>): Argv<GlobalArguments> {
  return captureVerb(logVerb(planVerb(importVerb(cli))));
}

function importVerb(cli: Argv<GlobalArguments>): Argv<GlobalArguments> {
  return cli.command(
    'import-log [files..]',
    'Learn how a database is used from its logs alone',
    (argv) =>
      argv
        .positional('files', {
          type: 'string',
          array: true,
          describe: 'stderr, csvlog, jsonlog or cloud JSON; gzip, bzip2, xz; - for standard input',
        })
        .option('prefix', {
          type: 'string',
          requiresArg: true,
          describe: 'log_line_prefix of the server [found out]',
        })
        .option('format', { choices: FORMAT_NAMES, describe: 'Format of the files [found out, for each]' })
        .option('timezone', {
          type: 'string',
          requiresArg: true,
          describe: 'Zone of abbreviations that mean several, and of --since: Europe/Dublin, +02:00',
        })
        .option('since', { type: 'string', requiresArg: true, describe: 'From then on: 2026-03-02, 24h' })
        .option('until', { type: 'string', requiresArg: true, describe: 'Up to then' })
        .option('database', { type: 'string', requiresArg: true, describe: 'Of this database only' })
        .option('out', {
          type: 'string',
          requiresArg: true,
          describe: 'Write the series to this file [understudy.series, where there is no configuration]',
        })
        .option('pg-stat-statements', {
          type: 'string',
          array: true,
          nargs: 1,
          describe: 'A snapshot, from a URL or a CSV file; twice for a difference',
        })
        .option('keys', {
          type: 'boolean',
          default: false,
          describe: 'Count the most used keys, as keyed hashes; needs source and destination',
        })
        .option('dry-run', { type: 'boolean', default: false, describe: 'Read and print, keep nothing' })
        .option('show-lines', {
          type: 'boolean',
          default: false,
          describe: 'Show lines that were not understood; they may hold values',
        })
        .example('$0 import-log /var/log/postgresql/*.log*', 'a rotated set, in order of time')
        .example("zcat day.gz | $0 import-log - --prefix '%t:%r:%u@%d:[%p]:'", ''),
    (args) =>
      runVerb(args, async (terminal) =>
        (await import('./import-log.js')).runImportLog(
          terminal,
          { ...args, files: args.files ?? [], pgStatStatements: args.pgStatStatements ?? [] },
          configIfAny(
            args,
            args.out !== undefined || args.dryRun ? (reason) => terminal.line(reason) : undefined,
          ),
        ),
      ),
  );
}

function captureVerb(cli: Argv<GlobalArguments>): Argv<GlobalArguments> {
  return cli.command(
    'capture',
    'What is captured: statements, tables, transactions, and what is missing',
    (argv) =>
      argv
        .option('kept', {
          type: 'boolean',
          default: false,
          describe: 'What the destination keeps of the last week; no process has to run',
        })
        .option('by', {
          choices: ['time', 'calls', 'errors'] as const,
          default: 'time' as const,
          describe: 'Order of the statements',
        })
        .option('limit', { type: 'number', requiresArg: true, default: 20, describe: 'Statements, at most' })
        .example('$0 capture --by calls', ''),
    (args) =>
      runVerb(args, async (terminal) =>
        (await import('./capture.js')).runCapture(
          terminal,
          args,
          () => configOf(args),
          () => adminOf(args),
        ),
      ),
  );
}

function logVerb(cli: Argv<GlobalArguments>): Argv<GlobalArguments> {
  return cli.command(
    'log',
    'What was decided, on which figures, and what became of it; cutovers and rollbacks',
    (argv) =>
      argv
        .option('limit', {
          type: 'number',
          requiresArg: true,
          default: 50,
          describe: 'Decisions, and operations, at most',
        })
        .example('$0 log --limit 5', ''),
    (args) =>
      runVerb(args, async (terminal) =>
        (await import('./log.js')).runLog(terminal, configOf(args), args.limit),
      ),
  );
}

function planVerb(cli: Argv<GlobalArguments>): Argv<GlobalArguments> {
  return cli.command(
    'plan',
    'What is hot, what a shadow of it costs, and when to switch',
    (argv) =>
      argv
        .option('series', {
          type: 'string',
          array: true,
          nargs: 1,
          describe:
            'From this file of `import-log`, repeatable [the series kept in the destination; understudy.series]',
        })
        .option('explain', {
          type: 'string',
          requiresArg: true,
          describe: 'Every term and reason behind one subset, named by it or by a table of it',
        })
        .option('svg', { type: 'string', requiresArg: true, describe: 'Draw it into this file' })
        .option('yaml', {
          type: 'boolean',
          default: false,
          describe: 'Say which `subsets` could be configured, ready to be pasted',
        })
        .option('timezone', {
          type: 'string',
          requiresArg: true,
          describe: 'The clock that people’s habits follow: Europe/Dublin [UTC]',
        })
        .option('days', {
          type: 'number',
          requiresArg: true,
          default: 70,
          describe: 'Days of the kept series that are looked at',
        })
        .example('$0 import-log *.log && $0 plan', 'from logs alone')
        .example('$0 plan --explain public.orders', ''),
    (args) =>
      runVerb(args, async (terminal) =>
        (await import('./plan.js')).runPlan(
          terminal,
          { ...args, series: args.series ?? [] },
          configIfAny(args, args.series === undefined ? undefined : (reason) => terminal.line(reason)),
          () => adminOf(args),
        ),
      ),
  );
}
