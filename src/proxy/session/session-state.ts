/**
 * What a session holds beyond its transactions: how to ask a backend for it, and what of it can't be moved.
 *
 * One SELECT, so that one round trip and one snapshot tell all that is usual; a second where it isn't. They run in the client's own session, whatever that
 * has done to search_path, role, quoting rules or encoding: every function, relation, type and operator is named
 * with its schema, and the text is plain ASCII without a
 * backslash. Values come back undecoded (raw-text.ts).
 *
 * Custom settings and the role don't show in pg_settings and must be asked for by name. What PostgreSQL has no way to
 * tell (libraries loaded, `currval` of sequences) is either flagged when it is sent or documented as not carried.
 */
import type { BlockerReason } from '../../core/traffic-ports.js';
import { UnderstudyError } from '../../core/errors.js';
import { isCustomSettingName } from '../../wire/postgres/setting-names.js';

export interface PreparedStatement {
  readonly name: string;
  readonly statement: string;
  readonly parameterOids: readonly number[];
  /** Qualified names of the types whose OID is this database's own, by OID. */
  readonly typeNames: ReadonlyMap<number, string>;
  /** Made by SQL's PREPARE, whose text `statement` is then; otherwise by a Parse message. */
  readonly fromSql: boolean;
}

export interface SessionState {
  readonly sessionAuthorization: string;
  /** `none`, or a role's name. */
  readonly role: string;
  /** Settings with source `session`. */
  readonly settings: ReadonlyMap<string, string>;
  /** Custom settings that have ever been set, by the names asked for. */
  readonly custom: ReadonlyMap<string, string>;
  readonly prepared: ReadonlyMap<string, PreparedStatement>;
  readonly listening: readonly string[];
  readonly holdCursors: readonly string[];
  readonly advisoryLocks: readonly string[];
  /** The session has a temporary schema, which may be empty. */
  readonly temporarySchema: boolean;
  readonly temporary: readonly string[];
}

/** Something that keeps a session on its side. */
export interface Pin {
  readonly reason: BlockerReason;
  readonly detail: string;
}

/** They show in the transaction of the statement that asks, and end with it; `transaction_timeout` is the session's. */
const OF_THE_TRANSACTION: ReadonlySet<string> = new Set([
  'transaction_isolation',
  'transaction_read_only',
  'transaction_deferrable',
]);

/** OIDs below are assigned by hand and the same in every database. */
export const FIRST_NORMAL_OID = 16384;

const FIXED_QUERY = `
SELECT 'role'::pg_catalog.text, pg_catalog.current_setting('role'), session_user::pg_catalog.text,
       pg_catalog.pg_my_temp_schema()::pg_catalog.text
UNION ALL
SELECT 'setting', s.name, s.setting, NULL
  FROM pg_catalog.pg_settings s WHERE s.source OPERATOR(pg_catalog.=) 'session'
UNION ALL
SELECT CASE WHEN p.from_sql THEN 'prepared-sql' ELSE 'prepared' END, p.name, p.statement,
       (p.parameter_types::pg_catalog.oid[])::pg_catalog.text
  FROM pg_catalog.pg_prepared_statements p
UNION ALL
SELECT 'cursor', c.name, NULL, NULL FROM pg_catalog.pg_cursors c WHERE c.is_holdable
UNION ALL
SELECT 'listening', l.channel, NULL, NULL FROM pg_catalog.pg_listening_channels() AS l(channel)
UNION ALL
SELECT 'advisory', k.classid::pg_catalog.text, k.objid::pg_catalog.text, NULL
  FROM pg_catalog.pg_locks k
 WHERE k.locktype OPERATOR(pg_catalog.=) 'advisory' AND k.granted
   AND k.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()`;

const TEMPORARY_QUERY = `
SELECT 'temporary'::pg_catalog.text, r.relname::pg_catalog.text, NULL::pg_catalog.text, NULL::pg_catalog.text
  FROM pg_catalog.pg_class r
 WHERE r.relnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()
   AND r.relkind OPERATOR(pg_catalog.<>) 'i' AND r.relkind OPERATOR(pg_catalog.<>) 'I'
UNION ALL
SELECT 'temporary', f.proname::pg_catalog.text, NULL, NULL FROM pg_catalog.pg_proc f
 WHERE f.pronamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()
UNION ALL
SELECT 'temporary', t.typname::pg_catalog.text, NULL, NULL FROM pg_catalog.pg_type t
 WHERE t.typnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()
   AND t.typrelid OPERATOR(pg_catalog.=) 0::pg_catalog.oid AND t.typelem OPERATOR(pg_catalog.=) 0::pg_catalog.oid`;

/**
 * What a first answer leaves open, which is rare and would make the first question dear: the names of types that are
 * this database's own, and what stands in the session's temporary schema. Null where nothing is open.
 */
export function detailQuery(state: SessionState): string | null {
  const parts: string[] = [];
  if (state.temporarySchema) parts.push(TEMPORARY_QUERY);
  const oids = new Set(
    [...state.prepared.values()].flatMap(({ parameterOids }) =>
      parameterOids.filter((oid) => oid >= FIRST_NORMAL_OID),
    ),
  );
  for (const oid of oids) {
    parts.push(`
SELECT 'type'::pg_catalog.text, t.oid::pg_catalog.text, pg_catalog.format('%I.%I', n.nspname, t.typname),
       NULL::pg_catalog.text
  FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace
 WHERE t.oid OPERATOR(pg_catalog.=) ${oid}::pg_catalog.oid`);
  }
  return parts.length === 0 ? null : parts.join('\nUNION ALL');
}

/** The question. Names that can't be custom settings are left out: such can't have been set. */
export function stateQuery(customNames: Iterable<string>): string {
  let sql = FIXED_QUERY;
  for (const name of customNames) {
    if (!isCustomSettingName(name)) continue;
    sql += `\nUNION ALL SELECT 'custom', '${name}', pg_catalog.current_setting('${name}', true), NULL`;
  }
  return sql;
}

type Row = readonly (string | null)[];

/** Reads the answers to {@link stateQuery} and {@link detailQuery} together. Throws `internal` on a row it did not ask for. */
export function readState(rows: readonly Row[]): SessionState {
  const settings = new Map<string, string>();
  const custom = new Map<string, string>();
  const prepared = new Map<string, PreparedStatement>();
  const lists = {
    cursor: [] as string[],
    listening: [] as string[],
    advisory: [] as string[],
    temporary: [] as string[],
  };
  const typeNames = new Map<number, string>();
  let temporarySchema = false;
  let role = 'none';
  let sessionAuthorization = '';
  for (const row of rows) {
    const [kind, name, value, third] = row;
    if (typeof kind !== 'string' || typeof name !== 'string') throw unexpected(kind);
    switch (kind) {
      case 'role':
        role = name;
        sessionAuthorization = value ?? '';
        temporarySchema = third !== '0';
        break;
      case 'setting':
        if (!OF_THE_TRANSACTION.has(name)) settings.set(name, value ?? '');
        break;
      case 'custom':
        if (value !== null && value !== undefined) custom.set(name, value);
        break;
      case 'prepared':
      case 'prepared-sql':
        prepared.set(name, {
          name,
          statement: value ?? '',
          parameterOids: readOids(third ?? '{}'),
          typeNames,
          fromSql: kind === 'prepared-sql',
        });
        break;
      case 'type':
        typeNames.set(Number(name), value ?? '');
        break;
      case 'advisory':
        lists.advisory.push(`${name}, ${value ?? ''}`);
        break;
      case 'cursor':
      case 'listening':
      case 'temporary':
        lists[kind].push(name);
        break;
      default:
        throw unexpected(kind);
    }
  }
  return {
    sessionAuthorization,
    role,
    settings,
    custom,
    prepared,
    listening: lists.listening,
    holdCursors: lists.cursor,
    advisoryLocks: lists.advisory,
    temporarySchema,
    temporary: lists.temporary,
  };
}

function unexpected(kind: string | null | undefined): UnderstudyError {
  return new UnderstudyError('internal', `session state: unexpected row ${String(kind)}`);
}

/** `{23,25}` */
function readOids(text: string): number[] {
  const inner = text.slice(1, -1);
  return inner === '' ? [] : inner.split(',').map(Number);
}

/** What of a state can't be given to another backend, by name. */
export function pinsOf(state: SessionState): Pin[] {
  const pins: Pin[] = [];
  for (const name of state.temporary) pins.push({ reason: 'temporary-table', detail: name });
  for (const name of state.holdCursors) pins.push({ reason: 'cursor-with-hold', detail: name });
  for (const name of state.advisoryLocks) pins.push({ reason: 'session-advisory-lock', detail: name });
  for (const statement of state.prepared.values()) {
    if (statement.fromSql && !isSingleStatement(statement.statement)) {
      pins.push({
        reason: 'state-unreadable',
        detail: `prepared statement ${statement.name} was made among other statements of one query string`,
      });
    }
  }
  return pins;
}

/**
 * The server keeps the whole query string in which a PREPARE stood. Only where the PREPARE stands alone may the string
 * be sent again: anything else in it would run a second time.
 */
function isSingleStatement(sql: string): boolean {
  const text = sql.trimEnd().replace(/;$/, '');
  return /^\s*prepare\s/i.test(text) && !text.includes(';');
}

/**
 * How far `to` is from `from`.
 * same: nothing differs · additions: settings were set or changed under the session's own role, or prepared
 * statements came or went: what differs can be given alone · different: anything else.
 */
export function compareStates(from: SessionState, to: SessionState): 'same' | 'additions' | 'different' {
  const onlyAdditions =
    from.sessionAuthorization === to.sessionAuthorization &&
    from.role === to.role &&
    sameList(from.listening, to.listening) &&
    covers(to.settings, from.settings) &&
    covers(to.custom, from.custom);
  if (!onlyAdditions) return 'different';
  const changed = changedSettings(from, to);
  // Under another role a setting may be refused, and texts are read in the encoding.
  if (changed.some(([name]) => name === 'client_encoding' || to.role !== 'none')) return 'different';
  const samePrepared =
    from.prepared.size === to.prepared.size &&
    [...from.prepared.values()].every((statement) =>
      samePreparedStatement(statement, to.prepared.get(statement.name)),
    );
  return samePrepared && changed.length === 0 ? 'same' : 'additions';
}

/** Settings and custom settings of `to` that `from` lacks or has otherwise. */
export function changedSettings(from: SessionState, to: SessionState): [string, string][] {
  return [
    ...[...to.settings].filter(([name, value]) => from.settings.get(name) !== value),
    ...[...to.custom].filter(([name, value]) => from.custom.get(name) !== value),
  ];
}

export function samePreparedStatement(a: PreparedStatement, b: PreparedStatement | undefined): boolean {
  return (
    b !== undefined &&
    a.statement === b.statement &&
    a.fromSql === b.fromSql &&
    a.parameterOids.join() === b.parameterOids.join()
  );
}

function covers(all: ReadonlyMap<string, string>, some: ReadonlyMap<string, string>): boolean {
  return [...some.keys()].every((key) => all.has(key));
}

function sameList(a: readonly string[], b: readonly string[]): boolean {
  const sorted = b.toSorted();
  return a.length === b.length && a.toSorted().every((value, index) => value === sorted[index]);
}
