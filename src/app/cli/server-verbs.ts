/** What begins a migration and what runs it, as the command line takes it. */
import type { Argv } from 'yargs';
import { adminOf, configOf, runVerb, type GlobalArguments } from './command.js';

export function serverVerbs(cli: Argv<GlobalArguments>): Argv<GlobalArguments> {
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
          (await import('./init.js')).runInit(terminal, { file: args.config, force: args.force }),
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
          (await import('./check.js')).runCheck(terminal, configOf(args), adminOf(args)),
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
          (await import('./run.js')).runProcess(terminal, () => configOf(args), {
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
          (await import('../demo/demo.js')).runDemo({
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
