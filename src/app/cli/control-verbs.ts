/** What is asked of a running process, as the command line takes it. */
import type { Argv } from 'yargs';
import { UnderstudyError } from '../../core/errors.js';
import { adminOf, runVerb, type GlobalArguments } from './command.js';
import type { Terminal } from './terminal.js';

export function controlVerbs(cli: Argv<GlobalArguments>): Argv<GlobalArguments> {
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
          (await import('./status.js')).runStatus(terminal, adminOf(args), { watch: args.watch }),
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
          .option('subset', { ...SUBSET, describe: 'The tables of this subset' })
          .option('repair', {
            type: 'boolean',
            default: false,
            describe: 'Mend what differs on the side that follows; both rows are recorded',
          })
          .option('resume', {
            type: 'boolean',
            default: false,
            describe: 'Leave out the tables that an interrupted comparison has found equal',
          })
          .option('intensity', {
            type: 'number',
            requiresArg: true,
            describe: 'Share of the time in which rows are compared, 0 to 1 [1]',
          })
          .example('$0 verify --table public.orders', '')
          .example('$0 verify --repair', ''),
      (args) =>
        runVerb(args, async (terminal) =>
          (await import('./operate.js')).runVerify(terminal, adminOf(args), {
            ...(args.repair ? { repair: true } : {}),
            ...(args.resume ? { resume: true } : {}),
            ...(args.intensity === undefined ? {} : { value: args.intensity }),
            ...(args.direction === undefined ? {} : { direction: args.direction }),
            ...(args.table === undefined ? {} : { tables: args.table }),
            ...(args.subset === undefined ? {} : { subset: args.subset }),
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
          (await import('./operate.js')).runShadow(terminal, adminOf(args), {
            action: args.action,
            values: args.values ?? [],
            ...(args.note === undefined ? {} : { note: args.note }),
          }),
        ),
    )
    .command(
      'conflicts',
      'Rows of the shadow that somebody wrote past its guard, and how each was settled',
      (argv) =>
        argv
          .option('limit', {
            type: 'number',
            requiresArg: true,
            describe: 'At most so many, the newest first; 100 unless given',
          })
          .example('$0 conflicts --json', 'both rows are in the destination, in understudy.conflict'),
      (args) =>
        runVerb(args, async (terminal) =>
          (await import('./conflicts.js')).runConflicts(
            terminal,
            adminOf(args),
            args.limit === undefined ? {} : { limit: args.limit },
          ),
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
          (await import('./operate.js')).runResume(
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
          .option('subset', SWITCHED)
          .example('$0 cutover --dry-run', 'names every session that could not be moved'),
      (args) => runVerb(args, (terminal) => switchVerb(terminal, args, 'cutover', args)),
    )
    .command(
      'rollback',
      'Switch the applications back to the source, without loss',
      (argv) =>
        argv
          .option('dry-run', { type: 'boolean', default: false, describe: 'Stop after preflight' })
          .option('subset', SWITCHED)
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
            ? (await import('./operate.js')).runDestinationLost(terminal, adminOf(args), {
                yes: args.yes,
                note: args.note,
                subset: args.subset,
              })
            : switchVerb(terminal, args, 'rollback', args),
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
          (await import('./operate.js')).runFinalize(terminal, adminOf(args), {
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
          (await import('./operate.js')).runRemove(terminal, adminOf(args), {
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
        runVerb(args, async (terminal) => (await import('./operate.js')).runAbort(terminal, adminOf(args))),
    );
}

const SWITCHED = {
  type: 'string',
  requiresArg: true,
  describe:
    'Which part, where `subsets` are configured, with what its policies take along; all that is left without it',
} as const;

const SUBSET = {
  type: 'string',
  requiresArg: true,
  describe: 'Which part, where `subsets` are configured; `rest` is what none of them names',
} as const;

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
  { dryRun, subset }: { readonly dryRun: boolean; readonly subset: string | undefined },
) {
  const { runSwitch } = await import('./operate.js');
  return runSwitch(terminal, adminOf(args), kind, { dryRun, ...(subset === undefined ? {} : { subset }) });
}
