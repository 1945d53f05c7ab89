/**
 * Turns the changes of a flush into the fewest writes with the same outcome: pure.
 *
 * Within a step, every key of a table is written once, with its final state: absent (deleted), a full row (upserted),
 * or a partial one (columns the log did not carry are left alone). Steps run in order. What names no key (TRUNCATE),
 * or moves a row whose unchanged columns the log did not carry to another key, is a step of its own.
 * Rows of tables without a key are never merged: they are written one by one, in order.
 */
import type { Change, RowChange } from './transactions.js';
import { bindRow, keyId, keyOf, type ApplyTable, type Binding, type Key, type Row } from './apply-table.js';
import { UnderstudyError } from '../../core/errors.js';
import type { RelationMessage } from '../../wire/postgres/pgoutput.js';

/** The state of one key at the end of a step; `row: null` is absent. */
export interface KeyedRow {
  readonly key: Key;
  readonly row: Row | null;
  /** The origin had a row of that key before the step. */
  readonly existed: boolean;
}

export type KeylessWrite =
  | { readonly kind: 'insert'; readonly row: Row }
  | { readonly kind: 'delete'; readonly old: Row }
  | { readonly kind: 'update'; readonly old: Row; readonly row: Row };

export interface TableRows {
  readonly table: ApplyTable;
  readonly keyed: Map<string, KeyedRow>;
  readonly keyless: KeylessWrite[];
}

export type Step =
  | { readonly kind: 'rows'; readonly tables: readonly TableRows[] }
  | { readonly kind: 'move'; readonly table: ApplyTable; readonly from: Key; readonly row: Row }
  | { readonly kind: 'truncate'; readonly tables: readonly ApplyTable[] }
  /** Some partitions of a table that is plain where it is written; `condition`: of the rows in one, null where unknown. */
  | { readonly kind: 'truncate-part'; readonly table: ApplyTable; readonly condition: string | null };

export function isPartial(row: Row): boolean {
  return row.includes(undefined);
}

/** `row` with the values it does not carry taken from `base`. */
export function overlay(base: Row, row: Row): Row {
  return row.map((value, index) => (value === undefined ? base[index] : value));
}

/** An update's new row, its old key and whether the key moved. */
export interface BoundUpdate {
  readonly row: Row;
  readonly oldKey: string[];
  readonly newKey: string[];
}

/**
 * Completes an update of a table with a key. Where the identity is FULL, or the key is out of line itself, what the
 * new tuple does not carry is in the old one.
 */
export function boundUpdate(binding: Binding, change: Extract<RowChange, { kind: 'update' }>): BoundUpdate {
  const { table } = binding;
  let row = bindRow(binding, change.row);
  const old = change.old === null ? null : bindRow(binding, change.old.row);
  if (old !== null && isPartial(row)) {
    // A key-only old tuple shows the other columns as null: only its key is a value.
    row = row.map((value, index) =>
      value === undefined && (change.old?.kind === 'full' || table.key?.includes(index) === true)
        ? old[index]
        : value,
    );
  }
  const newKey = keyOf(table, row);
  return { row, newKey, oldKey: old === null ? newKey : keyOf(table, old) };
}

/** A table of which only some partitions are emptied keeps the rows of the others. */
function truncation(
  relations: readonly RelationMessage[],
  bindingOf: (relation: RelationMessage) => Binding,
): readonly Step[] {
  const emptied = new Map<ApplyTable, Set<string>>();
  for (const relation of relations) {
    const { table } = bindingOf(relation);
    const names = emptied.get(table) ?? new Set();
    emptied.set(table, names.add(`${relation.schema}.${relation.name}`));
  }
  const whole: ApplyTable[] = [];
  const parts: Step[] = [];
  for (const [table, names] of emptied) {
    const { leaves } = table;
    if (leaves === undefined || [...leaves.keys()].every((leaf) => names.has(leaf))) whole.push(table);
    else {
      for (const name of names)
        parts.push({ kind: 'truncate-part', table, condition: leaves.get(name) ?? null });
    }
  }
  return whole.length === 0 ? parts : [{ kind: 'truncate', tables: whole }, ...parts];
}

export class FlushPlanner {
  readonly #coalesce: boolean;
  readonly #steps: Step[] = [];
  #rows = new Map<ApplyTable, TableRows>();
  /** Changes come in runs of one table. */
  #last: TableRows | undefined;

  /** Without `coalesce` every change becomes a step of its own, in order. */
  constructor(coalesce: boolean) {
    this.#coalesce = coalesce;
  }

  add(change: Change, bindingOf: (relation: RelationMessage) => Binding): void {
    if (change.kind === 'truncate') {
      this.#seal();
      this.#steps.push(...truncation(change.relations, bindingOf));
      return;
    }
    const binding = bindingOf(change.relation);
    if (binding.table.key === null) this.#keyless(binding, change);
    else this.#keyed(binding, change);
    if (!this.#coalesce) this.#seal();
  }

  finish(): readonly Step[] {
    this.#seal();
    return this.#steps;
  }

  #seal(): void {
    if (this.#rows.size === 0) return;
    this.#steps.push({ kind: 'rows', tables: [...this.#rows.values()] });
    this.#rows = new Map();
    this.#last = undefined;
  }

  #of(table: ApplyTable): TableRows {
    if (this.#last?.table === table) return this.#last;
    let rows = this.#rows.get(table);
    if (rows === undefined) {
      rows = { table, keyed: new Map(), keyless: [] };
      this.#rows.set(table, rows);
    }
    this.#last = rows;
    return rows;
  }

  #keyed(binding: Binding, change: RowChange): void {
    const { table } = binding;
    switch (change.kind) {
      case 'insert': {
        const row = bindRow(binding, change.row);
        this.#put(table, keyOf(table, row), row, false);
        return;
      }
      case 'delete': {
        this.#put(table, keyOf(table, bindRow(binding, change.old.row)), null, true);
        return;
      }
      case 'update':
        this.#update(table, boundUpdate(binding, change));
    }
  }

  #update(table: ApplyTable, { row, oldKey, newKey }: BoundUpdate): void {
    const { keyed } = this.#of(table);
    const oldId = keyId(oldKey);
    const before = keyed.get(oldId);
    const merged = before?.row == null || !isPartial(row) ? row : overlay(before.row, row);
    if (oldKey === newKey || oldId === keyId(newKey)) {
      keyed.set(oldId, { key: newKey, row: merged, existed: before?.existed ?? true });
    } else if (isPartial(merged)) {
      // Only the row that stands in the table knows the columns that did not change.
      this.#seal();
      this.#steps.push({ kind: 'move', table, from: oldKey, row });
    } else {
      this.#put(table, oldKey, null, true);
      this.#put(table, newKey, merged, false);
    }
  }

  #put(table: ApplyTable, key: Key, row: Row | null, existed: boolean): void {
    const { keyed } = this.#of(table);
    const id = keyId(key);
    keyed.set(id, { key, row, existed: keyed.get(id)?.existed ?? existed });
  }

  #keyless(binding: Binding, change: RowChange): void {
    const { keyless } = this.#of(binding.table);
    if (change.kind === 'insert') {
      keyless.push({ kind: 'insert', row: bindRow(binding, change.row) });
      return;
    }
    if (change.old?.kind !== 'full') {
      throw new UnderstudyError(
        'apply-failed',
        `${binding.table.name}: it has no key, and its replica identity is not FULL`,
        { advice: `Run ALTER TABLE ${binding.table.sql} REPLICA IDENTITY FULL and build the shadow anew.` },
      );
    }
    const old = bindRow(binding, change.old.row);
    keyless.push(
      change.kind === 'delete'
        ? { kind: 'delete', old }
        : { kind: 'update', old, row: overlay(old, bindRow(binding, change.row)) },
    );
  }
}
