#!/usr/bin/env node
/** The command line. What verbs are called and take is in `cli/*-verbs.ts`, what they do in a file each beside it. */
import yargs from 'yargs';
import { hideBin } from 'yargs/helpers';
import { UnderstudyError } from '../core/errors.js';
import { benchVerbs } from './cli/bench-verbs.js';
import { GLOBAL_OPTIONS, addGlobalOptions } from './cli/command.js';
import { controlVerbs } from './cli/control-verbs.js';
import { EXIT } from './cli/exit-codes.js';
import { serverVerbs } from './cli/server-verbs.js';
import { Terminal } from './cli/terminal.js';
import { usageVerbs } from './cli/usage-verbs.js';
import { VERSION } from './version.js';

const EPILOGUE = `Exit codes: 0 done · 1 refused, aborted or not equal, everything as before · 2 command line, configuration or
not reachable · 3 somebody must look · 70 bug. More: docs/cli.md, docs/configuration.md, docs/runbook.md`;

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

function helpAsked(argv: readonly string[]): boolean {
  return argv.length === 0 || argv.includes('--help') || argv.includes('-h') || argv.includes('help');
}

async function main(argv: readonly string[]): Promise<void> {
  const json = argv.includes('--json');
  const base = yargs([...argv])
    .scriptName('understudy')
    .usage('$0 <verb> [options]\n\nA proxy that keeps a live shadow of a database and switches over to it.');
  const cli = benchVerbs(usageVerbs(controlVerbs(serverVerbs(addGlobalOptions(base)))))
    .demandCommand(1, 'name a verb')
    .strict()
    .recommendCommands()
    .version(VERSION)
    .alias('h', 'help')
    .group([...GLOBAL_OPTIONS, 'help', 'version'], 'Options of every verb:')
    .example('$0 init && $0 check', 'write a configuration, see what stands in the way')
    .example('$0 run', 'then point the applications at it')
    .example('$0 cutover --dry-run', 'what a cutover would meet now')
    // yargs lays its help out for every verb that runs, which costs more than some verbs do: wrapped only for a reader.
    .wrap(helpAsked(argv) ? Math.min(110, process.stdout.columns ?? 110) : null)
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
