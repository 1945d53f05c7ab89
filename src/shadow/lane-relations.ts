/**
 * What a lane's session knows of the tables it writes, and what it makes of the relations that the log names.
 *
 * A relation of the log may be other than what was read of the tables: the schema changed. What was read outlives the
 * session, in the lane's state, so that the next one asks again only for what moved.
 *
 *   forward   a table or a column that is not known → the lane halts (`haltedAt`) until the schema was followed; one
 *             that was looked at and is not the shadow's (`settled`) is passed over from then on
 *   reverse   what both sides have is written; a column that only one has holds the lane up (`moved`) until the schema was
 *             followed (schema-back.ts) or somebody has acted. A new partition of what is one table on the other side is looked
 *             for once
 *
 * Invariant: nothing that comes behind a relation which is not understood is taken: `onApart` fails the session at once.
 */
import type { SubsetRules } from '../core/ports.js';
import type { Format } from '../core/format-ports.js';
import { UnderstudyError } from '../core/errors.js';
import { readSubsetTables } from '../core/subsets.js';
import type { RelationMessage } from '../wire/postgres/pgoutput.js';
import { isIdentity, readLaneTables, requiredForms } from './format/forms.js';
import { readNamed } from './format/naming.js';
import { hasPartitioning } from './format/partitioning.js';
import type { LaneState } from './lane-state.js';
import {
  bind,
  carriedBy,
  columnsApart,
  readApplyTables,
  relationDifference,
  targetOf,
  type ApplyTable,
  type Binding,
} from './postgres/apply-table.js';
import { readAddedColumns } from './postgres/schema-records.js';
import type { Session } from './postgres/statement.js';
import { readTables } from './postgres/tables.js';

export interface LaneRelationsContext {
  readonly format: Format | undefined;
  readonly subsets: readonly SubsetRules[];
  /** The log tells of another table than is known: the session ends. The error is retryable. */
  readonly onApart: (error: UnderstudyError) => void;
  /** What held the way back up no longer does. */
  readonly onTogether: () => void;
  /** Whether the session ends, for whatever reason. */
  readonly failed: () => boolean;
}

export class LaneRelations {
  readonly #state: LaneState;
  readonly #context: LaneRelationsContext;
  readonly #bindings = new Map<RelationMessage, Binding>();
  #tables: ReadonlyMap<string, ApplyTable> = new Map();

  constructor(state: LaneState, context: LaneRelationsContext) {
    this.#state = state;
    this.#context = context;
  }

  /** By the origin's names; none until `read`. */
  get tables(): ReadonlyMap<string, ApplyTable> {
    return this.#tables;
  }

  /** Reads what is not known yet. Throws what either server does. */
  async read(origin: Session, apply: Session): Promise<void> {
    this.#tables = await this.#knownTables(origin, apply);
    await this.#readMembers(origin);
    this.#state.addedColumns = await readAddedColumns(apply);
  }

  /** Both sides have the same tables under the same names wherever subsets are configured: a format is refused beside them. */
  async #readMembers(origin: Session): Promise<void> {
    const { subsets } = this.#context;
    if (subsets.length === 0) return;
    const closed = await readSubsetTables(origin.client, subsets);
    this.#state.members = new Map(
      closed.flatMap(({ subset, tables }) => tables.map((table) => [nameOf(table), subset] as const)),
    );
  }

  async #knownTables(origin: Session, apply: Session): Promise<ReadonlyMap<string, ApplyTable>> {
    const state = this.#state;
    if (state.tables !== undefined && !state.tablesMoved && !this.#mayBePartition) return state.tables;
    if (state.direction === 'reverse') {
      const there = await readTables(apply.client);
      state.columnsThere = new Map(
        there.map((table) => [nameOf(table), new Set(table.columns.map(({ name }) => name))] as const),
      );
    }
    state.tables = await this.#readTables(origin, apply);
    state.tablesMoved = false;
    return state.tables;
  }

  /** The origin's tables, each with its form on the other side. */
  async #readTables(origin: Session, apply: Session): Promise<ReadonlyMap<string, ApplyTable>> {
    const { format } = this.#context;
    if (isIdentity(format)) return await readApplyTables(origin, await readTables(origin.client));
    const [source, from, to] =
      this.#state.direction === 'forward'
        ? ([origin, 'source', 'destination'] as const)
        : ([apply, 'destination', 'source'] as const);
    const named = await readNamed(source === origin ? apply : origin);
    const forms = requiredForms(format, await readTables(source.client), named);
    return await readLaneTables(origin, forms, from, to);
  }

  /** Whether what the origin's log names may be a partition, new even, of what is one table where it is written. */
  get #mayBePartition(): boolean {
    return this.#state.direction === 'reverse' && hasPartitioning(this.#context.format);
  }

  /** Whether the lane writes the table's changes. Where the log tells of another table than is known, it stops. */
  wanted(relation: RelationMessage, led: boolean): boolean {
    const state = this.#state;
    const name = nameOf(relation);
    const table = this.#tables.get(name);
    if (table === undefined && this.#mayBePartition && !state.lookedFor.has(name)) {
      state.lookedFor.add(name);
      const message = `${name} is new: the tables are read again`;
      this.#context.onApart(new UnderstudyError('catalog-changed', message, { retryable: true }));
      return false;
    }
    if (state.direction === 'reverse') {
      if (table === undefined) state.ignored.add(name);
      if (led) this.#compareBack(relation, table);
      return table !== undefined && !this.#context.failed();
    }
    const { added, missing } =
      table === undefined ? { added: [], missing: [] } : relationDifference(relation, table);
    const fills = state.addedColumns.get(name);
    const unexplained = missing.filter((column) => fills?.has(column) !== true);
    if (table !== undefined && added.length === 0 && unexplained.length === 0) return true;
    const signature = signatureOf(relation);
    if (state.settled.has(signature)) {
      if (table === undefined) state.ignored.add(name);
      return table !== undefined;
    }
    const columns = [...added.map((one) => `+${one}`), ...unexplained.map((one) => `-${one}`)];
    const what =
      table === undefined
        ? 'is not one of the shadow’s tables'
        : `changed its columns (${columns.join(', ')})`;
    this.#context.onApart(
      new UnderstudyError('catalog-changed', `${name} ${what}`, {
        retryable: true,
        advice: 'Nothing yet: the schema is compared, and what can be carried over is.',
        details: { table: name, added, missing: unexplained },
      }),
    );
    state.haltedAt = signature;
    state.onSchemaNotice();
    return false;
  }

  /**
   * On the way back, what the log carries in a column that both sides have is written; a row from before a column was added
   * by hand, or from after it was dropped, leaves that one alone. A column that only one side has, and the log carries, holds
   * the lane up, once the tables were read again, until the schema was followed or somebody has acted.
   */
  #compareBack(relation: RelationMessage, table: ApplyTable | undefined): void {
    const state = this.#state;
    const name = nameOf(relation);
    const apart =
      table === undefined ? [] : columnsApart(relation, table, state.columnsThere.get(targetOf(table).name));
    const known = state.moved?.table === name ? state.moved : null;
    if (apart.length === 0) {
      if (known === null) return;
      state.moved = null;
      this.#context.onTogether();
      return;
    }
    const signature = signatureOf(relation);
    state.moved = { table: name, signature, held: known?.signature === signature };
    state.tablesMoved = true;
    state.onSchemaNotice();
    this.#context.onApart(
      new UnderstudyError(
        'catalog-changed',
        `${name} changed on the destination, and the way back waits: columns ${apart.join(', ')} are not on both sides`,
        {
          retryable: true,
          advice:
            'Make the same change on the source, and the way back goes on by itself. A column that was dropped again has to be on both sides until its rows are carried.',
          details: { table: name, columns: apart },
        },
      ),
    );
  }

  /** How the relation's rows are written. Only for one that is wanted. */
  bindingOf = (relation: RelationMessage): Binding => {
    let binding = this.#bindings.get(relation);
    if (binding === undefined) {
      const name = nameOf(relation);
      const table = this.#tables.get(name);
      if (table === undefined) throw new UnderstudyError('internal', `no table ${name}`);
      const fills = this.#state.addedColumns.get(name);
      const carried = this.#state.direction === 'reverse' ? carriedBy(relation, table, fills) : table;
      binding = bind(relation, carried, fills);
      this.#bindings.set(relation, binding);
    }
    return binding;
  };
}

export function nameOf({ schema, name }: { readonly schema: string; readonly name: string }): string {
  return `${schema}.${name}`;
}

function signatureOf({ schema, name, columns }: RelationMessage): string {
  return JSON.stringify([`${schema}.${name}`, columns.map((column) => column.name)]);
}
