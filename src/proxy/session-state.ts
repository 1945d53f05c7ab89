/**
 * What a session holds beyond its transactions: how to ask a backend for it, and what of it can't be moved.
 *
 * One SELECT, so that one round trip and one snapshot tell all. It runs in the client's own session, whatever that
 * has done to search_path, role, quoting rules or encoding: every function, relation, type and operator is named
 * with its schema, and the text is plain ASCII without a backslash. Values come back undecoded (raw-text.ts).
 *
 * Custom settings and the role don't show in pg_settings and must be asked for by name. What PostgreSQL has no way to
 * tell (libraries loaded, `currval` of sequences) is either flagged when it is sent or documented as not carried.
 */
import type { BlockerReason } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import { isCustomSettingName } from '../wire/postgres/statement-text.js';

export interface PreparedStatement {
  readonly name: string;
  readonly statement: string;
  readonly parameterOids: readonly number[];
  /** The types' qualified names, as the text form of a text[]; for those whose OID is this database's own. */
  readonly parameterTypes: string;
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
  readonly temporary: readonly string[];
}

/** Something that keeps a session on its side. */
export interface Pin {
  readonly reason: BlockerReason;
  readonly detail: string;
}

/** OIDs below are assigned by hand and the same in every database. */
export const FIRST_NORMAL_OID = 16384;

const FIXED_QUERY = `
SELECT 'role'::pg_catalog.text, pg_catalog.current_setting('role'), session_user::pg_catalog.text,
       NULL::pg_catalog.text, NULL::pg_catalog.text
UNION ALL
SELECT 'setting', s.name, s.setting, NULL, NULL
  FROM pg_catalog.pg_settings s WHERE s.source OPERATOR(pg_catalog.=) 'session'
UNION ALL
SELECT CASE WHEN p.from_sql THEN 'prepared-sql' ELSE 'prepared' END, p.name, p.statement,
       (p.parameter_types::pg_catalog.oid[])::pg_catalog.text,
       (ARRAY(SELECT pg_catalog.format('%I.%I', n.nspname, t.typname)
                FROM pg_catalog.unnest(p.parameter_types) WITH ORDINALITY AS u(type, place)
                JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) u.type::pg_catalog.oid
                JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace
               ORDER BY u.place))::pg_catalog.text
  FROM pg_catalog.pg_prepared_statements p
UNION ALL
SELECT 'cursor', c.name, NULL, NULL, NULL FROM pg_catalog.pg_cursors c WHERE c.is_holdable
UNION ALL
SELECT 'listening', l.channel, NULL, NULL, NULL FROM pg_catalog.pg_listening_channels() AS l(channel)
UNION ALL
SELECT 'advisory', k.classid::pg_catalog.text, k.objid::pg_catalog.text, k.objsubid::pg_catalog.text, NULL
  FROM pg_catalog.pg_locks k
 WHERE k.locktype OPERATOR(pg_catalog.=) 'advisory' AND k.granted
   AND k.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
UNION ALL
SELECT 'temporary', r.relname::pg_catalog.text, NULL, NULL, NULL FROM pg_catalog.pg_class r
 WHERE pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.<>) 0::pg_catalog.oid
   AND r.relnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()
   AND r.relkind OPERATOR(pg_catalog.<>) 'i' AND r.relkind OPERATOR(pg_catalog.<>) 'I'
UNION ALL
SELECT 'temporary', f.proname::pg_catalog.text, NULL, NULL, NULL FROM pg_catalog.pg_proc f
 WHERE pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.<>) 0::pg_catalog.oid
   AND f.pronamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()
UNION ALL
SELECT 'temporary', t.typname::pg_catalog.text, NULL, NULL, NULL FROM pg_catalog.pg_type t
 WHERE pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.<>) 0::pg_catalog.oid
   AND t.typnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()
   AND t.typrelid OPERATOR(pg_catalog.=) 0::pg_catalog.oid AND t.typelem OPERATOR(pg_catalog.=) 0::pg_catalog.oid`;

/** The question. Names that can't be custom settings are left out: such can't have been set. */
export function stateQuery(customNames: Iterable<string>): string {
  let sql = FIXED_QUERY;
  for (const name of customNames) {
    if (!isCustomSettingName(name)) continue;
    sql += `\nUNION ALL SELECT 'custom', '${name}', pg_catalog.current_setting('${name}', true), NULL, NULL`;
  }
  return sql;
}

type Row = readonly (string | null)[];

/** Reads the answer to {@link stateQuery}. Throws `internal` on a row it did not ask for. */
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
  let role = 'none';
  let sessionAuthorization = '';
  for (const row of rows) {
    const [kind, name, value, third, fourth] = row;
    if (typeof kind !== 'string' || typeof name !== 'string') throw unexpected(kind);
    switch (kind) {
      case 'role':
        role = name;
        sessionAuthorization = value ?? '';
        break;
      case 'setting':
        // They belong to the statement that asked.
        if (!name.startsWith('transaction_')) settings.set(name, value ?? '');
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
          parameterTypes: fourth ?? '{}',
          fromSql: kind === 'prepared-sql',
        });
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

/** Whether two states differ in nothing, or in prepared statements only. */
export function compareStates(a: SessionState, b: SessionState): 'same' | 'prepared' | 'different' {
  const rest =
    a.sessionAuthorization === b.sessionAuthorization &&
    a.role === b.role &&
    sameMap(a.settings, b.settings) &&
    sameMap(a.custom, b.custom) &&
    sameList(a.listening, b.listening);
  if (!rest) return 'different';
  const samePrepared =
    a.prepared.size === b.prepared.size &&
    [...a.prepared.values()].every((statement) =>
      samePreparedStatement(statement, b.prepared.get(statement.name)),
    );
  return samePrepared ? 'same' : 'prepared';
}

export function samePreparedStatement(a: PreparedStatement, b: PreparedStatement | undefined): boolean {
  return (
    b !== undefined &&
    a.statement === b.statement &&
    a.fromSql === b.fromSql &&
    a.parameterTypes === b.parameterTypes
  );
}

function sameMap(a: ReadonlyMap<string, string>, b: ReadonlyMap<string, string>): boolean {
  return a.size === b.size && [...a].every(([key, value]) => b.get(key) === value);
}

function sameList(a: readonly string[], b: readonly string[]): boolean {
  const sorted = b.toSorted();
  return a.length === b.length && a.toSorted().every((value, index) => value === sorted[index]);
}
