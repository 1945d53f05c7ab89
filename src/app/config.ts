/**
 * The configuration: one YAML file, overridden by the environment and by flags, checked as a whole. Every problem
 * is found at once and names the key and the place to mend it.
 */
import { readFileSync, existsSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import type { z } from 'zod';
import type { DatabaseEndpoint, Side, SubsetRules } from '../core/ports.js';
import { asUnderstudyError, UnderstudyError } from '../core/errors.js';
import { AllowedHours } from './autopilot/hours.js';
import type { ClientTlsMode } from '../proxy/login/tls.js';
import {
  assign,
  assignmentOverrides,
  environmentOverrides,
  readFileLayer,
  type Environment,
  type FileLayer,
  type Override,
  type Problem,
  type Tree,
} from './config/layers.js';
import { endpointText, isLoopback, parseDatabaseUrl } from './config/endpoint.js';
import { nearest } from './config/nearest.js';
import { resolveSubsets } from './config/subsets.js';
import {
  configKeys,
  configSchema,
  environmentName,
  sections,
  type ParsedConfig,
  type UnderstudyConfig,
} from './config/schema.js';

export const DEFAULT_CONFIG_FILE = 'understudy.yaml';

/** The checked configuration, with files read and defaults filled in. Holds secrets: print only through `redact`. */
export type ResolvedConfig = Omit<
  ParsedConfig,
  'source' | 'destination' | 'listen' | 'migration' | 'subsets'
> & {
  readonly migration: { readonly id: string };
  /** Empty: the whole database is one subset. */
  readonly subsets: readonly SubsetRules[];
  readonly source: DatabaseEndpoint;
  readonly destination: DatabaseEndpoint;
  /** Certificate and key as PEM. */
  readonly listen: {
    readonly host: string;
    readonly port: number;
    readonly reusePort: boolean;
    readonly socketDir?: string;
    /** As chmod takes it. */
    readonly socketMode: number;
    readonly databases: Readonly<Record<string, string>>;
    readonly tls?: {
      readonly cert: string;
      readonly key: string;
      readonly clientCa?: string;
      readonly mode: ClientTlsMode;
      readonly minVersion: 'TLSv1.2' | 'TLSv1.3';
    };
  };
};

export interface LoadOptions {
  /** Path of the file; absent: `UNDERSTUDY_CONFIG`, else `understudy.yaml` where it exists. */
  readonly file?: string | undefined;
  readonly environment?: Environment;
  /** `key=value` pairs. */
  readonly assignments?: readonly string[];
  /** Values of flags that have a key of their own. */
  readonly overrides?: readonly Override[];
  /** Folder against which the file's name is taken. */
  readonly cwd?: string;
}

/** Throws `config-invalid` with all problems, one a line, and in `details.problems`. */
export function loadConfig(options: LoadOptions = {}): ResolvedConfig {
  const environment = options.environment ?? process.env;
  const problems: Problem[] = [];
  const file = readConfigFile(options, environment, problems);
  const overrides = [
    ...environmentOverrides(environment, problems),
    ...assignmentOverrides(options.assignments ?? [], problems),
    ...(options.overrides ?? []),
  ];
  return resolveTree(file, overrides, problems, options.cwd ?? process.cwd());
}

export interface AdminAddressOptions extends LoadOptions {
  readonly url?: string | undefined;
  readonly token?: string | undefined;
}

/**
 * Where the running process answers, for the verbs that only talk to it: of the configuration just the `admin`
 * section has to be right. Throws `config-invalid`.
 */
export function loadAdminAddress(options: AdminAddressOptions = {}): {
  readonly host: string;
  readonly port: number;
  readonly token?: string | undefined;
} {
  const environment = options.environment ?? process.env;
  const problems: Problem[] = [];
  if (options.url !== undefined) {
    const url = URL.canParse(options.url) ? new URL(options.url) : undefined;
    if (url?.protocol !== 'http:')
      throw new UnderstudyError(
        'config-invalid',
        '--admin-url: expected a URL such as http://127.0.0.1:6433',
      );
    return {
      host: url.hostname.replace(/^\[(.*)\]$/, '$1'),
      port: url.port === '' ? 80 : Number(url.port),
      token: options.token ?? environment['UNDERSTUDY_ADMIN_TOKEN'],
    };
  }
  const file = readConfigFile(options, environment, problems);
  const tree: Tree = { admin: { ...(file?.tree['admin'] as Tree | undefined) } };
  const overrides = [
    ...environmentOverrides(environment, []),
    ...assignmentOverrides(options.assignments ?? [], problems),
    ...(options.overrides ?? []),
  ];
  for (const override of overrides) assign(tree, override.path, override.value);
  const parsed = sections.admin.safeParse(tree['admin'], { reportInput: true });
  const about = problems.filter((problem) => problem.path.length === 0 || problem.path[0] === 'admin');
  if (!parsed.success) {
    const where: Where = (path, what) =>
      hasPath(file?.tree, path) ? file?.locate(path, what ?? 'value') : undefined;
    about.push(
      ...parsed.error.issues.flatMap((issue) =>
        problemsOf({ ...issue, path: ['admin', ...issue.path] }, where, file),
      ),
    );
  }
  if (!parsed.success || about.length > 0) throw invalid(about);
  const { host, port, token } = parsed.data;
  // A port on all addresses is asked on this machine's own.
  const reach = host === '0.0.0.0' ? '127.0.0.1' : host === '::' ? '::1' : host;
  return { host: reach, port, token: options.token ?? token };
}

/** Checks a configuration given as an object, for programs. Throws `config-invalid`. */
export function resolveConfig(config: UnderstudyConfig): ResolvedConfig {
  const layer: FileLayer = { name: 'config', tree: { ...structuredClone(config) }, locate: () => 'config' };
  return resolveTree(layer, [], [], process.cwd());
}

function readConfigFile(
  options: LoadOptions,
  environment: Environment,
  problems: Problem[],
): FileLayer | undefined {
  const cwd = options.cwd ?? process.cwd();
  const named = options.file ?? environment['UNDERSTUDY_CONFIG'];
  const path = resolve(cwd, named ?? DEFAULT_CONFIG_FILE);
  if (named === undefined && !existsSync(path)) return undefined;
  let content: string;
  try {
    content = readFileSync(path, 'utf8');
  } catch (error) {
    throw new UnderstudyError(
      'config-invalid',
      `can’t read the configuration file ${path}: ${(error as NodeJS.ErrnoException).code ?? 'unknown error'}`,
      { cause: error, advice: 'Name an existing file with --config, or write one with `understudy init`.' },
    );
  }
  const layer = readFileLayer(named ?? DEFAULT_CONFIG_FILE, content, environment, problems);
  return { ...layer, directory: dirname(path) };
}

function resolveTree(
  file: FileLayer | undefined,
  overrides: readonly Override[],
  problems: Problem[],
  cwd: string,
): ResolvedConfig {
  const tree: Tree = { ...file?.tree };
  // A section that is absent, or stands there empty (`listen:`), takes its defaults.
  for (const name of Object.keys(sections)) tree[name] ??= {};
  const overridden = new Map<string, string>();
  for (const override of overrides) {
    assign(tree, override.path, override.value);
    overridden.set(override.path.join('.'), override.where);
  }
  const where = (path: readonly string[], what: 'key' | 'value' = 'value'): string | undefined =>
    overridden.get(path.join('.')) ?? (hasPath(file?.tree, path) ? file?.locate(path, what) : undefined);
  const parsed = configSchema.safeParse(tree, { reportInput: true });
  if (!parsed.success)
    problems.push(...parsed.error.issues.flatMap((issue) => problemsOf(issue, where, file)));
  const resolved = parsed.success
    ? resolveParsed(parsed.data, where, problems, file?.directory ?? cwd)
    : undefined;
  if (resolved === undefined || problems.length > 0) throw invalid(problems);
  return resolved;
}

function hasPath(tree: Tree | undefined, path: readonly string[]): boolean {
  let at: unknown = tree;
  for (const part of path) {
    if (typeof at !== 'object' || at === null || !Object.hasOwn(at, part)) return false;
    at = (at as Tree)[part];
  }
  return at !== undefined;
}

type Where = (path: readonly string[], what?: 'key' | 'value') => string | undefined;

function problemsOf(issue: z.core.$ZodIssue, where: Where, file: FileLayer | undefined): readonly Problem[] {
  const path = issue.path.map(String);
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((name) => {
      const guess = nearest(name, siblingsOf(path));
      const hint = guess === undefined ? '' : `; did you mean ${guess}?`;
      return { where: where([...path, name], 'key'), path: [...path, name], message: `unknown key${hint}` };
    });
  }
  const key = configKeys().find((candidate) => candidate.path.join('.') === path.join('.'));
  if (key === undefined)
    return [
      { where: where(path), path, message: `expected keys below it, such as ${siblingsOf(path).join(', ')}` },
    ];
  if (issue.input === undefined) {
    const place = file === undefined ? 'there is no configuration file' : `it is not in ${file.name}`;
    return [
      {
        where: undefined,
        path,
        message: `missing: expected ${key.expected}; ${place} and ${environmentName(path)} is not set`,
      },
    ];
  }
  const got = key.secret === true ? '' : `, got ${shorten(issue.input)}`;
  return [{ where: where(path), path, message: `expected ${key.expected}${got}` }];
}

function siblingsOf(path: readonly string[]): readonly string[] {
  const names = configKeys()
    .filter((key) => path.every((part, depth) => key.path[depth] === part))
    .map((key) => key.path[path.length]);
  return [...new Set(names.filter((name) => name !== undefined))];
}

function shorten(value: unknown): string {
  const json = JSON.stringify(value) ?? String(value);
  return json.length > 60 ? `${json.slice(0, 57)}…` : json;
}

function invalid(problems: readonly Problem[]): UnderstudyError {
  const lines = problems.map(({ where, path, message }) =>
    [where, path.length === 0 ? undefined : path.join('.')]
      .filter((part) => part !== undefined)
      .join(' ')
      .concat(`: ${message}`),
  );
  return new UnderstudyError('config-invalid', lines.join('\n'), {
    advice:
      'Mend the lines named above. docs/configuration.md lists every key; `understudy init` writes an example.',
    details: { problems: problems.map((problem, index) => ({ ...problem, text: lines[index] })) },
  });
}

function resolveParsed(
  parsed: ParsedConfig,
  where: Where,
  problems: Problem[],
  directory: string,
): ResolvedConfig | undefined {
  const problem = (path: readonly string[], message: string): undefined => {
    problems.push({ where: where(path), path, message });
    return undefined;
  };
  const read = (path: readonly string[], name: string): string | undefined => {
    try {
      return readFileSync(resolve(directory, name), 'utf8');
    } catch (error) {
      const reason = (error as NodeJS.ErrnoException).code ?? 'unknown error';
      return problem(path, `can’t read ${resolve(directory, name)}: ${reason}`);
    }
  };
  const source = resolveEndpoint('source', parsed.source, problem, read, directory);
  const destination = resolveEndpoint('destination', parsed.destination, problem, read, directory);
  const listenTls = resolveListenTls(parsed.listen.tls, read);
  checkAutopilot(parsed, problem);
  checkExposure(parsed, problem);
  if (source === undefined || destination === undefined) return undefined;
  if (endpointText({ ...source, user: '' }) === endpointText({ ...destination, user: '' }))
    problem(['destination', 'url'], 'source and destination are the same database');
  checkPoolModes(parsed, source.database, problem);
  const subsets = resolveSubsets(parsed, problem);
  const { usersFile } = parsed.auth;
  const { socketDir } = parsed.listen;
  if (usersFile !== undefined) read(['auth', 'usersFile'], usersFile);
  const { rule, module } = parsed.shadow.conflicts;
  if (module !== undefined) read(['shadow', 'conflicts', 'module'], module);
  else if (rule === 'module')
    problem(['shadow', 'conflicts', 'rule'], 'shadow.conflicts.module names no module');
  return {
    ...parsed,
    shadow: {
      ...parsed.shadow,
      conflicts: { rule, ...(module === undefined ? {} : { module: resolve(directory, module) }) },
    },
    auth: {
      method: parsed.auth.method,
      ...(usersFile === undefined ? {} : { usersFile: resolve(directory, usersFile) }),
    },
    migration: { id: parsed.migration.id ?? migrationIdOf(source.database) },
    subsets,
    source,
    destination,
    listen: {
      host: parsed.listen.host,
      port: parsed.listen.port,
      reusePort: parsed.listen.reusePort,
      ...(socketDir === undefined ? {} : { socketDir: resolve(directory, socketDir) }),
      socketMode: Number.parseInt(parsed.listen.socketMode, 8),
      databases: parsed.listen.databases ?? {},
      ...(listenTls === undefined ? {} : { tls: listenTls }),
    },
  };
}

/** Databases that are passed through are served in sessions. */
function checkPoolModes(
  { listen, proxy }: ParsedConfig,
  managed: string,
  problem: (path: readonly string[], message: string) => undefined,
): void {
  for (const asked of Object.keys(proxy.poolModes ?? {})) {
    if (asked === managed || listen.databases?.[asked] === managed) continue;
    problem(
      ['proxy', 'poolModes'],
      `"${asked}" is no name of the migrated database, which is "${managed}" and what listen.databases says of it`,
    );
  }
}

function resolveListenTls(
  tls: ParsedConfig['listen']['tls'],
  read: (path: readonly string[], name: string) => string | undefined,
): ResolvedConfig['listen']['tls'] {
  if (tls === undefined) return undefined;
  const { cert, key, clientCa, mode, minVersion } = tls;
  return {
    cert: read(['listen', 'tls', 'cert'], cert) ?? '',
    key: read(['listen', 'tls', 'key'], key) ?? '',
    mode,
    minVersion,
    ...(clientCa === undefined ? {} : { clientCa: read(['listen', 'tls', 'clientCa'], clientCa) ?? '' }),
  };
}

function checkAutopilot(
  { autopilot }: ParsedConfig,
  problem: (path: readonly string[], message: string) => undefined,
): void {
  for (const [key, hours, zone] of [
    ['allowedHours', autopilot.allowedHours ?? '', 'UTC'],
    ['timezone', '', autopilot.timezone],
  ] as const) {
    try {
      AllowedHours.parse(hours, zone);
    } catch (error) {
      problem(['autopilot', key], asUnderstudyError(error, 'config-invalid', 'autopilot').message);
    }
  }
}

/** A port that others can reach must not be open to everyone. */
function checkExposure(
  parsed: ParsedConfig,
  problem: (path: readonly string[], message: string) => undefined,
): void {
  const { admin, listen, auth } = parsed;
  if (!isLoopback(admin.host) && admin.token === undefined)
    problem(
      ['admin', 'token'],
      `missing: admin.host ${admin.host} can be reached from other machines, so a token is required`,
    );
  const { tls } = listen;
  if (tls?.clientCa === undefined) {
    if (auth.method === 'certificate')
      problem(
        ['auth', 'method'],
        'certificate needs listen.tls.clientCa, which signs the clients’ certificates',
      );
    if (tls?.mode === 'verify-ca' || tls?.mode === 'verify-full')
      problem(
        ['listen', 'tls', 'mode'],
        `${tls.mode} needs listen.tls.clientCa, which signs the clients’ certificates`,
      );
  }
  if (isLoopback(listen.host)) return;
  if (auth.method === 'trust')
    problem(
      ['auth', 'method'],
      `trust on listen.host ${listen.host} would let anyone on the network in; use verifier, or listen on 127.0.0.1`,
    );
  if ((auth.method === 'cleartext' || auth.method === 'pass-through') && tls === undefined)
    problem(
      ['auth', 'method'],
      `${auth.method} on listen.host ${listen.host} needs listen.tls, or passwords would cross the network unprotected`,
    );
}

function resolveEndpoint(
  side: Side,
  section: ParsedConfig['source'],
  problem: (path: readonly string[], message: string) => undefined,
  read: (path: readonly string[], name: string) => string | undefined,
  directory: string,
): DatabaseEndpoint | undefined {
  const url = parseDatabaseUrl(section.url);
  if (typeof url === 'string') return problem([side, 'url'], url);
  const fromFile =
    section.passwordFile === undefined
      ? undefined
      : read([side, 'passwordFile'], section.passwordFile)?.split(/\r?\n/, 1)[0];
  const password = section.password ?? fromFile ?? url.endpoint.password;
  const files: { [K in 'tlsCa' | 'tlsCert' | 'tlsKey']?: string } = {};
  const pem = (key: 'tlsCa' | 'tlsCert' | 'tlsKey'): { readonly [K in typeof key]?: string } => {
    const name = section[key] ?? url[`${key}File`];
    if (name === undefined) return {};
    files[key] = resolve(directory, name);
    return { [key]: read([side, section[key] === undefined ? 'url' : key], name) ?? '' };
  };
  const tls = section.tls ?? url.tls ?? (isLoopback(url.endpoint.host) ? 'disable' : 'verify-full');
  const tlsNegotiation = section.tlsNegotiation ?? url.tlsNegotiation;
  const channelBinding = section.channelBinding ?? url.channelBinding;
  if (tlsNegotiation === 'direct' && !DIRECT_MODES.includes(tls))
    problem([side, 'tlsNegotiation'], `direct needs ${side}.tls ${DIRECT_MODES.join(', ')}, got ${tls}`);
  const pems = { ...pem('tlsCa'), ...pem('tlsCert'), ...pem('tlsKey') };
  if ((pems.tlsCert === undefined) !== (pems.tlsKey === undefined))
    problem([side, 'tlsCert'], 'a certificate and its key are given together or not at all');
  return {
    ...url.endpoint,
    tls,
    ...(tlsNegotiation === undefined ? {} : { tlsNegotiation }),
    ...(channelBinding === undefined ? {} : { channelBinding }),
    ...(password === undefined ? {} : { password }),
    ...pems,
    ...(Object.keys(files).length === 0 ? {} : { tlsFiles: files }),
  };
}

/** A mode that may end up without TLS can't begin with it. */
const DIRECT_MODES: readonly string[] = ['require', 'verify-ca', 'verify-full'];

/** `Web-Shop` → `web_shop`. */
export function migrationIdOf(database: string): string {
  const id = database
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '_')
    .slice(0, 40);
  return id === '' ? 'main' : id;
}

/** The configuration without anything secret, for logs and `status`. */
export function redact(config: ResolvedConfig): Readonly<Record<string, unknown>> {
  const endpoint = (side: Side): unknown => {
    const { password, tlsCa, tlsCert, tlsKey, ...rest } = config[side];
    return {
      ...rest,
      ...(password === undefined ? {} : { password: '***' }),
      ...(tlsCa === undefined ? {} : { tlsCa: 'given' }),
      ...(tlsCert === undefined ? {} : { tlsCert: 'given' }),
      ...(tlsKey === undefined ? {} : { tlsKey: '***' }),
    };
  };
  return {
    ...config,
    source: endpoint('source'),
    destination: endpoint('destination'),
    listen: { ...config.listen, ...(config.listen.tls === undefined ? {} : { tls: 'given' }) },
    admin: { ...config.admin, ...(config.admin.token === undefined ? {} : { token: '***' }) },
  };
}
