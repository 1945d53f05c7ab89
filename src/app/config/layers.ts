/**
 * Where a value came from, so that a problem can name the place to mend: the file's line, the variable or the flag.
 *
 * Layers, later ones win: the YAML file, the environment (`UNDERSTUDY_*`), flags. `${NAME}` in the file's texts is
 * replaced from the environment, `${NAME:-fallback}` where it may be absent, `$${` stands for `${`.
 */
import { LineCounter, isMap, isScalar, parseDocument, type Document } from 'yaml';
import { configKeys, environmentName, type ConfigKey } from './schema.js';
import { nearest } from './nearest.js';

export interface Problem {
  /** `understudy.yaml:12:5`, `UNDERSTUDY_LISTEN_PORT` or `--port`; undefined where a value is missing. */
  readonly where: string | undefined;
  readonly path: readonly string[];
  readonly message: string;
}

export type Environment = Readonly<Record<string, string | undefined>>;
export type Tree = { [key: string]: unknown };

export interface FileLayer {
  readonly name: string;
  readonly tree: Tree;
  /** Position of the key (or of the nearest parent that exists) as `file:line:column`. */
  locate(path: readonly string[], what: 'key' | 'value'): string;
  /** Folder of the file, against which the paths in it are taken. */
  readonly directory?: string;
}

const MAX_FILE_BYTES = 1_048_576;

/** Parses one file. Problems of the YAML itself, and of substitution, are added to `problems`. */
export function readFileLayer(
  name: string,
  source: string,
  environment: Environment,
  problems: Problem[],
): FileLayer {
  const lines = new LineCounter();
  const at = (offset: number): string => {
    const { line, col } = lines.linePos(offset);
    return `${name}:${line}:${col}`;
  };
  const empty: FileLayer = { name, tree: {}, locate: () => `${name}:1:1` };
  if (source.length > MAX_FILE_BYTES) {
    problems.push({ where: name, path: [], message: `the file is larger than ${MAX_FILE_BYTES} bytes` });
    return empty;
  }
  // Pretty errors quote the file's lines, which may hold a password.
  const document = parseDocument(source, { lineCounter: lines, prettyErrors: false });
  for (const error of document.errors)
    problems.push({ where: at(error.pos[0]), path: [], message: `not valid YAML: ${error.message}` });
  if (document.errors.length > 0) return empty;
  if (document.contents !== null && !isMap(document.contents)) {
    problems.push({
      where: `${name}:1:1`,
      path: [],
      message: 'expected sections such as `listen:` and `source:`',
    });
    return empty;
  }
  const layer: FileLayer = {
    name,
    tree: {},
    locate: (path, what) => at(offsetOf(document, path, what)),
  };
  const tree = (document.toJS({ maxAliasCount: 10 }) ?? {}) as Tree;
  const kinds = new Map(configKeys().map((key) => [key.path.join('.'), key]));
  const substituted = substitute(tree, [], environment, kinds, (path, message) =>
    problems.push({ where: layer.locate(path, 'value'), path, message }),
  ) as Tree;
  return { ...layer, tree: substituted };
}

function offsetOf(document: Document, path: readonly string[], what: 'key' | 'value'): number {
  let node: unknown = document.contents;
  let offset = 0;
  for (const [depth, part] of path.entries()) {
    if (!isMap(node)) break;
    const pair = node.items.find((item) => isScalar(item.key) && String(item.key.value) === part);
    if (pair === undefined) break;
    const last = depth === path.length - 1;
    const key = isScalar(pair.key) ? pair.key.range?.[0] : undefined;
    const value = (pair.value as { range?: [number, number, number] } | null)?.range?.[0];
    offset = (last && what === 'value' ? (value ?? key) : key) ?? offset;
    node = pair.value;
  }
  return offset;
}

const REFERENCE = /\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}/g;

function substitute(
  value: unknown,
  path: readonly string[],
  environment: Environment,
  keys: ReadonlyMap<string, ConfigKey>,
  problem: (path: readonly string[], message: string) => void,
): unknown {
  if (typeof value === 'string') {
    if (!value.includes('${')) return value;
    const replaced = value.replace(REFERENCE, (whole, name?: string, fallback?: string) => {
      if (name === undefined) return '${';
      const found = environment[name];
      if (found !== undefined && found !== '') return found;
      if (fallback !== undefined) return fallback;
      problem(path, `the environment variable ${name} is not set`);
      return whole;
    });
    const key = keys.get(path.join('.'));
    return key === undefined ? replaced : coerce(replaced, key);
  }
  if (Array.isArray(value)) return value;
  if (typeof value === 'object' && value !== null)
    return Object.fromEntries(
      Object.entries(value).map(([name, child]) => [
        name,
        substitute(child, [...path, name], environment, keys, problem),
      ]),
    );
  return value;
}

/** Text from outside the file as the kind the key wants; what can't be read stays text and fails the key's check. */
export function coerce(textValue: string, key: ConfigKey): unknown {
  if (key.kind === 'number' && /^-?\d+(\.\d+)?$/.test(textValue.trim())) return Number(textValue);
  if (key.kind === 'boolean' && /^(true|false)$/i.test(textValue.trim()))
    return /^true$/i.test(textValue.trim());
  return textValue;
}

export interface Override {
  readonly where: string;
  readonly path: readonly string[];
  readonly value: unknown;
}

/** Names under UNDERSTUDY_ that are not keys of the configuration. */
const OTHER_VARIABLES = new Set(['UNDERSTUDY_CONFIG']);

/**
 * `UNDERSTUDY_*` variables. Unknown ones are refused only where they look like a slip of the pen: a cluster puts
 * variables of its own there for a service named `understudy`.
 */
export function environmentOverrides(environment: Environment, problems: Problem[]): readonly Override[] {
  const byName = new Map(configKeys().map((key) => [environmentName(key.path), key]));
  const overrides: Override[] = [];
  for (const [name, value] of Object.entries(environment)) {
    if (!name.startsWith('UNDERSTUDY_') || value === undefined || value === '') continue;
    const key = byName.get(name);
    if (key !== undefined) overrides.push({ where: name, path: key.path, value: coerce(value, key) });
    else if (!OTHER_VARIABLES.has(name) && !/_(SERVICE_(HOST|PORT)|PORT)(_|$)/.test(name)) {
      const guess = nearest(name, [...byName.keys()]);
      if (guess !== undefined)
        problems.push({ where: name, path: [], message: `no such setting; did you mean ${guess}?` });
    }
  }
  return overrides;
}

/** `--set cutover.drainTimeoutMs=3000`. */
export function assignmentOverrides(
  assignments: readonly string[],
  problems: Problem[],
): readonly Override[] {
  const byPath = new Map(configKeys().map((key) => [key.path.join('.'), key]));
  const overrides: Override[] = [];
  for (const assignment of assignments) {
    const equals = assignment.indexOf('=');
    const name = equals < 0 ? assignment : assignment.slice(0, equals);
    const key = byPath.get(name);
    if (equals < 0)
      problems.push({ where: '--set', path: [], message: `expected key=value, got ${JSON.stringify(name)}` });
    else if (key === undefined) {
      const guess = nearest(name, [...byPath.keys()]);
      const hint = guess === undefined ? '' : `; did you mean ${guess}?`;
      problems.push({ where: '--set', path: [], message: `unknown key ${JSON.stringify(name)}${hint}` });
    } else
      overrides.push({
        where: `--set ${name}`,
        path: key.path,
        value: coerce(assignment.slice(equals + 1), key),
      });
  }
  return overrides;
}

/** Writes `value` at `path`, making the sections on the way. A section that is not a map is left to its own check. */
export function assign(tree: Tree, path: readonly string[], value: unknown): void {
  let at = tree;
  for (const part of path.slice(0, -1)) {
    const next = at[part];
    if (next === undefined || next === null) {
      const made: Tree = {};
      at[part] = made;
      at = made;
    } else if (typeof next === 'object' && !Array.isArray(next)) at = next as Tree;
    else return;
  }
  const last = path.at(-1);
  if (last !== undefined) at[last] = value;
}
