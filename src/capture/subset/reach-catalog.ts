/** What names and calls lead to, through the catalogs as they were read. What is not found is `unknown`, never passed over. */
import type { SubsetId } from '../../core/ports.js';
import type { TableReference } from '../access.js';
import { unreadBody, type Body } from '../routine-body.js';
import type { ImpliedNames } from '../tree-implied.js';
import { writtenName } from '../written-name.js';
import type { ExtensionFunction, ReachRelation, ReachSnapshot } from './reach-snapshot.js';

/** Their compiled functions run SQL, read relations that they are given by name, or reach other servers. */
const EXTENSIONS_UNREAD = new Set(
  (
    'adminpack amcheck autoinc citus dblink file_fdw http insert_username lo moddatetime pageinspect pg_buffercache ' +
    'pg_cron pg_freespacemap pg_net pg_prewarm pg_visibility pgrowlocks pgstattuple pg_surgery pg_walinspect postgis ' +
    'postgres_fdw refint tablefunc tcn timescaledb xml2'
  ).split(' '),
);
function isRead({ extension, compiled, immutable }: ExtensionFunction): boolean {
  return compiled && (immutable || !EXTENSIONS_UNREAD.has(extension));
}

const SYSTEM_SCHEMAS = new Set(['pg_catalog', 'information_schema']);
/** Views on views, and functions that call functions, are followed that far. */
const DEPTH_MAX = 16;

/** What is found; `unknown` names the first thing that could not be. */
export interface Found {
  readonly subsets: Set<SubsetId>;
  unknown: string | null;
  /** A function of the server's own whose answer differs each time, or with the transaction. */
  volatile: boolean;
}

type Path = readonly string[] | null;

/** How deep a call is, and what has been followed on the way: none is twice, by name and path. */
class Chain {
  readonly depth: number;
  readonly #entered: Set<string>;

  constructor(depth = 0, entered = new Set<string>()) {
    this.depth = depth;
    this.#entered = entered;
  }

  next(): Chain {
    return new Chain(this.depth + 1, this.#entered);
  }

  /** False: it has been. */
  enter(full: string, path: Path): boolean {
    const key = JSON.stringify([full, path]);
    if (this.#entered.has(key)) return false;
    this.#entered.add(key);
    return true;
  }
}

export class ReachCatalog {
  readonly #relations = new Map<string, ReachRelation>();
  readonly #system: ReadonlySet<string>;
  readonly #snapshot: ReachSnapshot;
  readonly #subsetOf: ReadonlyMap<string, SubsetId>;

  /** `subsetOf`: by `schema.name` on the source, of every table. */
  constructor(snapshot: ReachSnapshot, subsetOf: ReadonlyMap<string, SubsetId>) {
    this.#snapshot = snapshot;
    this.#subsetOf = subsetOf;
    this.#system = new Set(snapshot.systemRelations);
    for (const relation of snapshot.relations) this.#relations.set(relation.name, relation);
  }

  /** `path`: null where it is not known. */
  relation(reference: TableReference, path: Path, found: Found): void {
    this.#named(reference, path, found, new Chain());
  }

  /** One that is written to must be the database's own. */
  written({ schema, name }: TableReference, path: Path, found: Found): void {
    const full = schema === null ? (path ?? []).map((each) => `${each}.${name}`) : [`${schema}.${name}`];
    const view = full.map((each) => this.#relations.get(each)).find((each) => each !== undefined);
    if (
      (schema === null ? this.#system.has(name) : SYSTEM_SCHEMAS.has(schema)) ||
      view?.bases.some((base) => SYSTEM_SCHEMAS.has(base.slice(0, base.indexOf('.'))))
    )
      found.unknown ??= `${name} is of the server itself, and changing it is for one side only`;
  }

  #named({ schema, name }: TableReference, path: Path, found: Found, chain: Chain): void {
    // Where the path names it, the server's own come in its place; else before all others.
    const ahead = schema === null ? (path ?? []).slice(0, Math.max(0, path?.indexOf('pg_catalog') ?? 0)) : [];
    const hidden = ahead.some((each) => this.#relations.has(`${each}.${name}`));
    if (!hidden && (schema === null ? this.#system.has(name) : SYSTEM_SCHEMAS.has(schema))) {
      this.#ofTheServer(name, found);
      return;
    }
    const full = (schema === null ? (path ?? []) : [schema])
      .map((each) => `${each}.${name}`)
      .find((each) => this.#relations.has(each));
    if (full === undefined) {
      found.unknown ??= `the relation ${schema === null ? name : `${schema}.${name}`} is not known`;
      return;
    }
    this.#relation(full, path, found, chain);
  }

  #relation(name: string, path: Path, found: Found, chain: Chain): void {
    const relation = this.#relations.get(name);
    const subset = this.#subsetOf.get(name) ?? this.#subsetOf.get(relation?.root ?? '');
    if (subset !== undefined) {
      found.subsets.add(subset);
      const policies = relation?.policies ?? null;
      if (policies === null || !chain.enter(`policies of ${name}`, path)) return;
      for (const read of policies.relations) this.#relation(read, path, found, chain.next());
      for (const called of policies.functions) this.#called(called, path, found, chain.next());
      return;
    }
    if (relation?.kind !== 'v' || chain.depth > DEPTH_MAX) {
      // The server's own, under a view.
      const [schema = '', own = ''] = name.split('.');
      if (SYSTEM_SCHEMAS.has(schema)) {
        this.#ofTheServer(own, found);
        return;
      }
      found.unknown ??= `the relation ${name} belongs to no subset`;
      return;
    }
    for (const base of relation.bases) this.#relation(base, path, found, chain.next());
    for (const routine of relation.functions) this.#called(routine, path, found, chain.next());
    const { query } = relation;
    if (query === null) return;
    if (query.problem !== null || query.effect !== null)
      found.unknown ??= `what the view ${name} does can’t be known (${query.problem ?? query.effect})`;
    for (const call of query.calls)
      if (this.#snapshot.builtin.has(call.name)) this.#builtin(call.name, null, path, found);
    this.#implied(query, path, found, chain.next());
  }

  /** Most of it is alike on both sides, or about the server itself. */
  #ofTheServer(name: string, found: Found): void {
    if (HOLDS_DATA.has(name)) found.unknown ??= `${name} tells of whichever side the session is on`;
  }

  /** `literal`: its first argument, where that is a string written out. */
  call(reference: TableReference, literal: string | null, path: Path, found: Found): void {
    this.#call(reference, literal, path, found, new Chain());
  }

  /** What runs without being called by name, and what runs whatever a statement says. */
  implied(names: ImpliedNames, path: Path, found: Found): void {
    const chain = new Chain();
    this.#implied(names, path, found, chain);
    for (const full of this.#snapshot.implied.always) this.#called(full, path, found, chain);
  }

  #implied(
    names: { readonly [kind in keyof ImpliedNames]: Iterable<string> },
    path: Path,
    found: Found,
    chain: Chain,
  ): void {
    for (const kind of ['operators', 'types', 'attributes'] as const)
      for (const name of names[kind])
        for (const full of this.#snapshot.implied[kind].get(name) ?? [])
          this.#called(full, path, found, chain);
  }

  #call(
    { schema, name }: TableReference,
    literal: string | null,
    path: Path,
    found: Found,
    chain: Chain,
  ): void {
    const { builtin, routines, ofExtensions } = this.#snapshot;
    const isBuiltin = (schema === null || schema === 'pg_catalog') && builtin.has(name);
    const known = (full: string): boolean => routines.has(full) || ofExtensions.has(full);
    // Overloads can't be told apart without types: each on the path may be meant; without a path, each anywhere.
    const others =
      schema === null && path === null
        ? [...routines.keys(), ...ofExtensions.keys()].filter((each) => each.endsWith(`.${name}`))
        : (schema === null ? (path ?? []) : [schema]).map((each) => `${each}.${name}`).filter(known);
    if (isBuiltin) this.#builtin(name, literal, path, found);
    for (const other of others) this.#called(other, path, found, chain);
    if (!isBuiltin && others.length === 0) {
      found.unknown ??= `the function ${schema === null ? name : `${schema}.${name}`} is not known`;
    }
  }

  #called(full: string, path: Path, found: Found, chain: Chain): void {
    const { routines, ofExtensions } = this.#snapshot;
    if (full.startsWith('pg_catalog.')) {
      this.#builtin(full.slice('pg_catalog.'.length), null, path, found);
      return;
    }
    const extension = ofExtensions.get(full);
    if (extension !== undefined && !isRead(extension)) {
      found.unknown ??= `what the function ${full} of the extension ${extension.extension} touches can’t be known`;
      return;
    }
    const bodies = routines.get(full) ?? (extension === undefined ? [unreadBody()] : []);
    if (bodies.length === 0 || !chain.enter(full, path)) return;
    if (chain.depth > DEPTH_MAX) {
      found.unknown ??= `the function ${full} calls too deep`;
      return;
    }
    for (const body of bodies) this.#body(full, body, path, found, chain.next());
  }

  #body(full: string, body: Body, path: Path, found: Found, chain: Chain): void {
    if (body.problem !== null) {
      found.unknown ??= `what the function ${full} touches can’t be known (${body.problem})`;
      return;
    }
    if (body.effect !== null) {
      found.unknown ??= `the function ${full} changes ${body.effect}, on one side only`;
      return;
    }
    const own = body.path === 'caller' ? path : body.path === 'unknown' ? null : body.path;
    for (const table of body.tables) this.#named(table, own, found, chain);
    for (const call of body.calls) this.#call(call, null, own, found, chain);
    this.#implied(body, own, found, chain);
  }

  #builtin(name: string, literal: string | null, path: Path, found: Found): void {
    if (SEQUENCE_FUNCTIONS.has(name)) {
      this.#sequence(name, literal, path, found);
      return;
    }
    const why = REFUSED_FUNCTIONS.find(({ names }) => names.test(name))?.why;
    if (why !== undefined) found.unknown ??= `${name} ${why}`;
    if (OF_THE_TRANSACTION.has(name)) found.volatile = true;
    else if (this.#snapshot.builtin.get(name) === true && !HARMLESS_VOLATILE.has(name)) found.volatile = true;
  }

  #sequence(name: string, literal: string | null, path: Path, found: Found): void {
    if (literal === null) {
      found.unknown ??= `${name} is called on a sequence that the statement does not name`;
      return;
    }
    const written = writtenName(literal);
    const schemas = written?.schema == null ? (path ?? []) : [written.schema];
    const full = schemas
      .map((each) => `${each}.${written?.name ?? ''}`)
      .find((each) => this.#snapshot.sequences.has(each));
    const tables = full === undefined ? [] : (this.#snapshot.sequences.get(full) ?? []);
    if (tables.length === 0) found.unknown ??= `the sequence ${literal} belongs to no known table`;
    for (const table of tables) this.#relation(table, path, found, new Chain());
  }
}

const SEQUENCE_FUNCTIONS = new Set(['nextval', 'currval', 'setval', 'pg_sequence_last_value']);
/** Relations of the server's own that tell what applications have stored. */
const HOLDS_DATA = new Set(['pg_sequences', 'pg_largeobject', 'pg_prepared_xacts']);
const OF_THE_TRANSACTION = new Set(['now', 'transaction_timestamp', 'statement_timestamp']);
/** Another answer each time, of which none is a side's. */
const HARMLESS_VOLATILE = new Set([
  'random',
  'random_normal',
  'gen_random_uuid',
  'uuidv4',
  'uuidv7',
  'clock_timestamp',
  'timeofday',
  'pg_sleep',
  'pg_sleep_for',
  'pg_sleep_until',
  'set_config',
]);
const REFUSED_FUNCTIONS: readonly { readonly names: RegExp; readonly why: string }[] = [
  { names: /^pg_(?:try_)?advisory_/, why: 'locks on one side only' },
  { names: /^lastval$/, why: 'answers for whichever side the session is on' },
  { names: /^pg_notify$/, why: 'is heard on one side only' },
  {
    names: /^(?:query|table|schema|database|cursor)_to_xml|^ts_stat$|^ts_rewrite$/,
    why: 'runs SQL that can’t be read beforehand',
  },
  { names: /^lo_|^loread$|^lowrite$/, why: 'is about large objects, which belong to no subset' },
  {
    names: /^pg_(?:logical_|replication_|create_.*slot|drop_.*slot|copy_.*slot)/,
    why: 'is of the side’s own log',
  },
  { names: /^pg_(?:cancel|terminate)_backend$/, why: 'is about another connection of one side' },
  { names: /^pg_export_snapshot$/, why: 'is of use on one side only' },
];
