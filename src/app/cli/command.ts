/** What every verb shares: global flags, the configuration, the running process, and how a verb ends. */
import type { Argv } from 'yargs';
import { existsSync } from 'node:fs';
import {
  DEFAULT_CONFIG_FILE,
  loadAdminAddress,
  loadConfig,
  type LoadOptions,
  type ResolvedConfig,
} from '../config.js';
import { asUnderstudyError } from '../../core/errors.js';
import { configKeys } from '../config/schema.js';
import { coerce, type Override } from '../config/layers.js';
import { AdminClient } from '../admin-client.js';
import { exitCodeOf } from './exit-codes.js';
import { Terminal } from './terminal.js';

export interface GlobalArguments {
  readonly config: string | undefined;
  readonly set: readonly string[] | undefined;
  readonly json: boolean;
  readonly verbose: boolean;
  readonly 'admin-url': string | undefined;
  readonly token: string | undefined;
  readonly 'source-url': string | undefined;
  readonly 'destination-url': string | undefined;
  readonly port: number | undefined;
  readonly 'log-level': string | undefined;
}

export const GLOBAL_OPTIONS = [
  'config',
  'set',
  'source-url',
  'destination-url',
  'port',
  'log-level',
  'admin-url',
  'token',
  'json',
  'verbose',
] as const satisfies readonly (keyof GlobalArguments)[];

export function addGlobalOptions(argv: Argv): Argv<GlobalArguments> {
  return argv
    .option('config', {
      type: 'string',
      requiresArg: true,
      describe: 'Configuration file [UNDERSTUDY_CONFIG, else understudy.yaml]',
    })
    .option('set', {
      type: 'string',
      array: true,
      nargs: 1,
      describe: 'Override one key: --set cutover.drainTimeoutMs=3000 (repeatable)',
    })
    .option('source-url', { type: 'string', requiresArg: true, describe: 'Overrides source.url' })
    .option('destination-url', { type: 'string', requiresArg: true, describe: 'Overrides destination.url' })
    .option('port', { type: 'number', requiresArg: true, describe: 'Overrides listen.port' })
    .option('log-level', { type: 'string', requiresArg: true, describe: 'Overrides log.level' })
    .option('admin-url', {
      type: 'string',
      requiresArg: true,
      describe: 'Admin port of the running process [from admin.host and admin.port]',
    })
    .option('token', { type: 'string', requiresArg: true, describe: 'Admin token [UNDERSTUDY_ADMIN_TOKEN]' })
    .option('json', {
      type: 'boolean',
      default: false,
      describe: 'One JSON object as the last line of standard output',
    })
    .option('verbose', { type: 'boolean', default: false, describe: 'Show stacks and causes of errors' });
}

const FLAG_KEYS = {
  'source-url': 'source.url',
  'destination-url': 'destination.url',
  port: 'listen.port',
  'log-level': 'log.level',
} as const;

function loadOptions(args: GlobalArguments): LoadOptions {
  const overrides: Override[] = [];
  for (const [flag, path] of Object.entries(FLAG_KEYS) as [keyof typeof FLAG_KEYS, string][]) {
    const value = args[flag];
    const key = configKeys().find((candidate) => candidate.path.join('.') === path);
    if (value !== undefined && key !== undefined)
      overrides.push({
        where: `--${flag}`,
        path: key.path,
        value: typeof value === 'string' ? coerce(value, key) : value,
      });
  }
  return { file: args.config, assignments: args.set ?? [], overrides };
}

/** Throws `config-invalid`. */
export function configOf(args: GlobalArguments): ResolvedConfig {
  return loadConfig(loadOptions(args));
}

/**
 * The configuration where there is one: a file, or a source or destination named in the environment or by a flag; else
 * null. For verbs that work without. Where what is asked for needs none (`leaveOut` is given), a file that merely lies in
 * the working directory and can't be used is left out, and `leaveOut` told why. Throws `config-invalid`.
 */
export function configIfAny(
  args: GlobalArguments,
  leaveOut?: (reason: string) => void,
): ResolvedConfig | null {
  const named =
    args.config !== undefined ||
    args['source-url'] !== undefined ||
    args['destination-url'] !== undefined ||
    ['CONFIG', 'SOURCE_URL', 'DESTINATION_URL'].some(
      (name) => (process.env[`UNDERSTUDY_${name}`] ?? '') !== '',
    );
  if (named) return configOf(args);
  if (!existsSync(DEFAULT_CONFIG_FILE)) return null;
  try {
    return configOf(args);
  } catch (error) {
    if (leaveOut === undefined) throw error;
    leaveOut(`${DEFAULT_CONFIG_FILE} is left out: ${asUnderstudyError(error, 'config-invalid', '').message}`);
    return null;
  }
}

/** Throws `config-invalid`. */
export function adminOf(args: GlobalArguments): AdminClient {
  return new AdminClient(
    loadAdminAddress({ ...loadOptions(args), url: args['admin-url'], token: args.token }),
  );
}

/**
 * Runs a verb to its exit code. Errors are printed and turned into theirs. The process then ends by itself; a verb
 * that must not wait for what is still open ends it.
 */
export async function runVerb(
  args: GlobalArguments,
  verb: (terminal: Terminal) => Promise<number>,
): Promise<void> {
  const terminal = new Terminal(args);
  try {
    process.exitCode = await verb(terminal);
  } catch (error) {
    process.exitCode = exitCodeOf(terminal.error(error).code);
  }
}
