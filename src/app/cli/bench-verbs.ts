/** `bench replay`, as the command line takes it. */
import type { Argv } from 'yargs';
import { configIfAny, runVerb, type GlobalArguments } from './command.js';

export function benchVerbs(cli: Argv<GlobalArguments>): Argv<GlobalArguments> {
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
            (await import('./replay.js')).runReplay(terminal, args, () => configIfAny(args)),
          ),
      )
      .demandCommand(1, 'name what to do: bench replay <file>'),
  );
}
