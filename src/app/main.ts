#!/usr/bin/env node
/** The command line. Each verb is a file in `cli/`; here is only what they are called and take. */
import yargs, { type Argv } from 'yargs';
import { hideBin } from 'yargs/helpers';
import { FORMAT_NAMES } from '../capture/import/entry.js';
import { UnderstudyError } from '../core/errors.js';
import {
  GLOBAL_OPTIONS,
  adminOf,
  addGlobalOptions,
  configIfAny,
  configOf,
  runVerb,
  type GlobalArguments,
} from './cli/command.js';
import { EXIT } from './cli/exit-codes.js';
import { Terminal } from './cli/terminal.js';
import { VERSION } from './version.js';

const EPILOGUE = `Exit codes: 0 done · 1 refused, aborted or not equal, everything as before · 2 command line, configuration or
not reachable · 3 somebody must look · 70 bug. More: docs/cli.md, docs/configuration.md, docs/runbook.md`;

function serverVerbs(cli: Argv<GlobalArguments>): Argv<GlobalArguments> {
  return cli
    .command(
      'init',
      'Write a commented example configuration',
      (argv) =>
        argv
          .option('force', { type: 'boolean', default: false, describe: 'Replace a file that exists' })
          .example('$0 init', 'writes understudy.yaml'),
      (args) =>
        runVerb(args, async (terminal) =>
          (await import('./cli/init.js')).runInit(terminal, { file: args.config, force: args.force }),
        ),
    )
    .command(
      'check',
      'Preflight of both databases: what stands in the way, and what to do about it',
      (argv) =>
        argv
          .example('$0 check', 'with understudy.yaml of this folder')
          .example('$0 check --json | tail -n1 | jq .findings', 'for scripts'),
      (args) =>
        runVerb(args, async (terminal) =>
          (await import('./cli/check.js')).runCheck(terminal, configOf(args)),
        ),
    )
    .command(
      'run',
      'Run the sidecar: proxy, shadow and admin port, until SIGTERM; SIGHUP reads the configuration again',
      (argv) =>
        argv
          .option('record', {
            type: 'string',
            requiresArg: true,
            describe: 'Record what clients send to this file, all values included, for `bench replay`',
          })
          .option('record-max-bytes', {
            type: 'number',
            requiresArg: true,
            default: 0,
            describe: 'The recording ends when the file has about this size [no bound]',
          })
          .example('$0 run', 'with understudy.yaml of this folder')
          .example('$0 run --port 7000 --set shadow.enabled=false', 'the proxy alone, on another port'),
      (args) =>
        runVerb(args, async (terminal) =>
          (await import('./cli/run.js')).runProcess(terminal, () => configOf(args), {
            record: args.record,
            recordMaxBytes: args.recordMaxBytes,
          }),
        ),
    )
    .command(
      'demo',
      'A zero-downtime upgrade from PostgreSQL 14 to 18 and back, on this machine',
      (argv) =>
        argv
          .option('keep', { type: 'boolean', default: false, describe: 'Leave all running at the end' })
          .option('seconds', {
            type: 'number',
            requiresArg: true,
            describe: 'How long the clients work on each side between two switches',
          })
          .option('rows', { type: 'number', requiresArg: true, describe: 'About that many rows in the shop' })
          .option('clients', {
            type: 'number',
            requiresArg: true,
            describe: 'Client connections in all, at least 4',
          })
          .option('seed', { type: 'number', requiresArg: true, describe: 'Seed of what the clients do' })
          .option('pace', {
            type: 'number',
            requiresArg: true,
            describe: 'Transactions a second the clients aim at',
          })
          .example('$0 demo --keep', 'look around with psql afterwards'),
      (args) =>
        runVerb(args, async () =>
          (await import('./demo/demo.js')).runDemo({
            json: args.json,
            keep: args.keep,
            seconds: args.seconds,
            rows: args.rows,
            clients: args.clients,
            seed: args.seed,
            paceTps: args.pace,
          }),
        ),
    );
}

function controlVerbs(cli: Argv<GlobalArguments>): Argv<GlobalArguments> {
  return cli
    .command(
      'status',
      'What the running process is doing',
      (argv) =>
        argv
          .option('watch', { type: 'boolean', default: false, describe: 'Again every second, until Ctrl-C' })
          .example('$0 status --watch', ''),
      (args) =>
        runVerb(args, async (terminal) =>
          (await import('./cli/status.js')).runStatus(terminal, adminOf(args), { watch: args.watch }),
        ),
    )
    .command(
      'verify',
      'Compare source and destination, row by row where hashes differ',
      (argv) =>
        argv
          .option('direction', {
            choices: ['forward', 'reverse'] as const,
            describe: 'Which side is right: forward = the source [by the present route]',
          })
          .option('table', {
            type: 'string',
            array: true,
            nargs: 1,
            describe: 'schema.name, repeatable [all tables]',
          })
          .option('repair', {
            type: 'boolean',
            default: false,
            describe: 'Mend what differs on the destination; both rows are recorded',
          })
          .example('$0 verify --table public.orders', '')
          .example('$0 verify --repair', ''),
      (args) =>
        runVerb(args, async (terminal) =>
          (await import('./cli/operate.js')).runVerify(terminal, adminOf(args), {
            ...(args.repair ? { repair: true } : {}),
            ...(args.direction === undefined ? {} : { direction: args.direction }),
            ...(args.table === undefined ? {} : { tables: args.table }),
          }),
        ),
    )
    .command(
      'shadow <action> [values..]',
      'Steer the running shadow: its copy, its intensity, which tables come first, skip a change it is stuck at',
      (argv) =>
        argv
          .positional('action', {
            choices: ['pause', 'resume', 'intensity', 'prioritise', 'skip'] as const,
            demandOption: true,
            describe: 'What to do',
          })
          .positional('values', {
            type: 'string',
            array: true,
            describe: 'The intensity, 0 to 1; or the tables, as schema.name, that are copied first',
          })
          .option('note', {
            type: 'string',
            requiresArg: true,
            describe: 'Why a change is skipped; recorded',
          })
          .example('$0 shadow intensity 0.3', '')
          .example('$0 shadow prioritise public.orders public.item', 'none: in the usual order')
          .example('$0 shadow skip --note "fixed by hand"', ''),
      (args) =>
        runVerb(args, async (terminal) =>
          (await import('./cli/operate.js')).runShadow(terminal, adminOf(args), {
            action: args.action,
            values: args.values ?? [],
            ...(args.note === undefined ? {} : { note: args.note }),
          }),
        ),
    )
    .command(
      'resume',
      'Go on after a change of the source’s schema that needed a decision',
      (argv) =>
        argv
          .option('recopy', {
            type: 'string',
            array: true,
            nargs: 1,
            describe: 'schema.name of a table to empty on the destination and copy anew, repeatable',
          })
          .example('$0 resume --recopy public.orders', 'after the same ALTER TABLE on the destination'),
      (args) =>
        runVerb(args, async (terminal) =>
          (await import('./cli/operate.js')).runResume(
            terminal,
            adminOf(args),
            args.recopy === undefined ? {} : { recopy: args.recopy },
          ),
        ),
    )
    .command(
      'cutover',
      'Switch the applications over to the destination',
      (argv) =>
        argv
          .option('dry-run', {
            type: 'boolean',
            default: false,
            describe: 'Stop after preflight: no effect a client could see',
          })
          .example('$0 cutover --dry-run', 'names every session that could not be moved'),
      (args) => runVerb(args, (terminal) => switchVerb(terminal, args, 'cutover', args.dryRun)),
    )
    .command(
      'rollback',
      'Switch the applications back to the source, without loss',
      (argv) =>
        argv
          .option('dry-run', { type: 'boolean', default: false, describe: 'Stop after preflight' })
          .option('destination-lost', {
            type: 'boolean',
            default: false,
            describe: 'The destination is gone for good: what was not carried back yet is lost',
          })
          .option('note', {
            type: 'string',
            requiresArg: true,
            describe: 'Why, with --destination-lost; recorded',
          })
          .option('yes', { type: 'boolean', default: false, describe: 'Do not ask' })
          .check(notTogether('destination-lost', 'dry-run')),
      (args) =>
        runVerb(args, async (terminal) =>
          args.destinationLost
            ? (await import('./cli/operate.js')).runDestinationLost(terminal, adminOf(args), {
                yes: args.yes,
                note: args.note,
              })
            : switchVerb(terminal, args, 'rollback', args.dryRun),
        ),
    )
    .command(
      'finalize',
      'End the migration: retire the source; no rollback after that',
      (argv) =>
        argv
          .option('yes', { type: 'boolean', default: false, describe: 'Do not ask' })
          .option('remove-fence', {
            type: 'boolean',
            default: false,
            describe: 'Make the retired source writable again; nobody follows it',
          })
          .option('source-lost', {
            type: 'boolean',
            default: false,
            describe: 'The old server is gone: nothing is undone on it',
          })
          .check(notTogether('source-lost', 'remove-fence')),
      (args) =>
        runVerb(args, async (terminal) =>
          (await import('./cli/operate.js')).runFinalize(terminal, adminOf(args), {
            yes: args.yes,
            removeFence: args.removeFence,
            sourceLost: args.sourceLost,
          }),
        ),
    )
    .command(
      'remove',
      'Take everything of Understudy off the servers: the shadow is given up, or the cutover finalized',
      (argv) =>
        argv
          .option('yes', { type: 'boolean', default: false, describe: 'Do not ask' })
          .option('destination-lost', {
            type: 'boolean',
            default: false,
            describe: 'The new server is gone: nothing is undone on it',
          }),
      (args) =>
        runVerb(args, async (terminal) =>
          (await import('./cli/operate.js')).runRemove(terminal, adminOf(args), {
            yes: args.yes,
            destinationLost: args.destinationLost,
          }),
        ),
    )
    .command(
      'abort',
      'Ask the running operation to undo itself, while it is before its point of no return',
      (argv) => argv,
      (args) =>
        runVerb(args, async (terminal) =>
          (await import('./cli/operate.js')).runAbort(terminal, adminOf(args)),
        ),
    );
}

function importVerbs(cli: Argv<GlobalArguments>): Argv<GlobalArguments> {
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
        (await import('./cli/import-log.js')).runImportLog(
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
        (await import('./cli/capture.js')).runCapture(
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
        (await import('./cli/log.js')).runLog(terminal, configOf(args), args.limit),
      ),
  );
}

function planVerbs(cli: Argv<GlobalArguments>): Argv<GlobalArguments> {
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
        (await import('./cli/plan.js')).runPlan(
          terminal,
          { ...args, series: args.series ?? [] },
          configIfAny(args, args.series === undefined ? undefined : (reason) => terminal.line(reason)),
          () => adminOf(args),
        ),
      ),
  );
}

function benchVerbs(cli: Argv<GlobalArguments>): Argv<GlobalArguments> {
  return cli.command('bench', 'Try a workload on another server', (bench) =>
    bench
      .command(
        'replay <file>',
        'Replay what `run --record` recorded, writes included, and compare',
        (argv) =>
          argv
            .positional('file', { type: 'string', demandOption: true, describe: 'The recording' })
            .option('against', {
              type: 'string',
              requiresArg: true,
              describe: 'postgres://user:password@host/database: a copy made for it. PGPASSWORD is used too',
            })
            .option('speed', {
              type: 'string',
              requiresArg: true,
              default: '1',
              describe: 'Times as fast as recorded; max: as fast as answers come',
            })
            .option('sessions', {
              type: 'number',
              requiresArg: true,
              describe: 'Connections at a time; others wait [as recorded]',
            })
            .option('database', {
              type: 'string',
              requiresArg: true,
              describe: 'Which sessions, where several databases were recorded',
            })
            .option('answer-timeout-ms', {
              type: 'number',
              requiresArg: true,
              default: 300_000,
              describe: 'A session without an answer for that long is given up',
            })
            .option('dry-run', {
              type: 'boolean',
              default: false,
              describe: 'Only say what the recording holds',
            })
            .option('yes-write', {
              type: 'boolean',
              default: false,
              describe: 'Write even to a database that is part of a migration',
            })
            .example('$0 bench replay day.rec --against postgres://me@copy/shop --speed 2', ''),
        (args) =>
          runVerb(args, async (terminal) =>
            (await import('./cli/replay.js')).runReplay(terminal, args, () => configIfAny(args)),
          ),
      )
      .demandCommand(1, 'name what to do: bench replay <file>'),
  );
}

/** yargs' own `conflicts` takes a default of false for a given option. */
function notTogether(one: string, other: string) {
  return (args: Readonly<Record<string, unknown>>): true => {
    if (args[one] === true && args[other] === true)
      throw new UnderstudyError('config-invalid', `--${one} and --${other} exclude one another`);
    return true;
  };
}

async function switchVerb(
  terminal: Terminal,
  args: GlobalArguments,
  kind: 'cutover' | 'rollback',
  dryRun: boolean,
) {
  const { runSwitch } = await import('./cli/operate.js');
  return runSwitch(terminal, adminOf(args), kind, { dryRun });
}

/** A command line that can't be read: the hint on standard error, under --json also as JSON. */
function refuse(message: string, json: boolean): void {
  const terminal = new Terminal({ json, verbose: false });
  terminal.error(
    new UnderstudyError('config-invalid', message, {
      advice: '`understudy --help` lists the verbs, `understudy <verb> --help` its options.',
    }),
  );
  process.exitCode = EXIT.usage;
}

async function main(argv: readonly string[]): Promise<void> {
  const json = argv.includes('--json');
  const base = yargs([...argv])
    .scriptName('understudy')
    .usage('$0 <verb> [options]\n\nA proxy that keeps a live shadow of a database and switches over to it.');
  const cli = benchVerbs(
    captureVerb(logVerb(planVerbs(importVerbs(controlVerbs(serverVerbs(addGlobalOptions(base))))))),
  )
    .demandCommand(1, 'name a verb')
    .strict()
    .recommendCommands()
    .version(VERSION)
    .alias('h', 'help')
    .group([...GLOBAL_OPTIONS, 'help', 'version'], 'Options of every verb:')
    .example('$0 init && $0 check', 'write a configuration, see what stands in the way')
    .example('$0 run', 'then point the applications at it')
    .example('$0 cutover --dry-run', 'what a cutover would meet now')
    .wrap(Math.min(110, process.stdout.columns ?? 110))
    .epilogue(EPILOGUE)
    .exitProcess(false)
    .fail((message, error) => {
      // yargs calls this again, with what is thrown here, for errors of its own making.
      throw error ?? new UnderstudyError('config-invalid', message);
    });
  if (argv.length === 0) {
    cli.showHelp('error');
    process.exitCode = EXIT.usage;
    return;
  }
  try {
    await cli.parseAsync();
  } catch (error) {
    if (error instanceof UnderstudyError || (error instanceof Error && error.name === 'YError'))
      refuse(error.message, json);
    else throw error;
  }
}

await main(hideBin(process.argv));
