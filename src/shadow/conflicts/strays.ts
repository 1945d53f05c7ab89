/** What the destination's log tells of writes that were made while the source led, by somebody else than Understudy. */
import type { RelationMessage } from '../../wire/postgres/pgoutput.js';
import { bindRow, keyOf, type Binding } from '../postgres/apply-table.js';
import type { Change, TransactionPart } from '../postgres/transactions.js';
import type { StrayWrite } from './records.js';

/** 2000-01-01, from which the log counts microseconds. */
const EPOCH_SECONDS = 946_684_800;

/**
 * A change of a key names two rows, a TRUNCATE all its tables: each is told apart by an ordinal that no other change has.
 * Of more tables in one TRUNCATE the rest are not recorded; `verify` finds what they lack.
 */
const PLACES_PER_CHANGE = 4096;

/** `changes`: of the part's transaction, the first being its `ordinal`th. `cut`: there were more. */
export function strayWrites(
  part: TransactionPart,
  changes: readonly Change[],
  ordinal: number,
  cut: boolean,
  bindingOf: (relation: RelationMessage) => Binding,
): readonly StrayWrite[] {
  const common = {
    position: part.commitLsn,
    writtenAt: EPOCH_SECONDS + Number(part.commitMicros) / 1e6,
  };
  const strays: StrayWrite[] = [];
  for (const [index, change] of changes.entries()) {
    for (const [within, { relation, key }] of rowsOf(change, bindingOf).entries()) {
      const place = PLACES_PER_CHANGE * (ordinal + index) + within;
      const table = { schema: relation.schema, name: relation.name };
      strays.push({ ...common, ordinal: place, table, kind: change.kind, key });
    }
  }
  const last = changes.at(-1);
  const [relation] = last === undefined ? [] : last.kind === 'truncate' ? last.relations : [last.relation];
  if (cut && relation !== undefined) {
    const table = { schema: relation.schema, name: relation.name };
    strays.push({
      ...common,
      ordinal: PLACES_PER_CHANGE * (ordinal + changes.length),
      table,
      kind: 'many',
      key: null,
    });
  }
  return strays;
}

function rowsOf(
  change: Change,
  bindingOf: (relation: RelationMessage) => Binding,
): readonly { readonly relation: RelationMessage; readonly key: readonly string[] | null }[] {
  if (change.kind === 'truncate') {
    return change.relations.slice(0, PLACES_PER_CHANGE).map((relation) => ({ relation, key: null }));
  }
  const { relation } = change;
  const binding = bindingOf(relation);
  const { table } = binding;
  if (table.key === null) return [{ relation, key: null }];
  const after = change.kind === 'delete' ? null : keyOf(table, bindRow(binding, change.row));
  const old = change.kind === 'insert' ? null : change.old;
  const before = old === null ? null : keyOf(table, bindRow(binding, old.row));
  const keys = [before, after].filter((key) => key !== null);
  const distinct = new Map(keys.map((key) => [JSON.stringify(key), key]));
  return [...distinct.values()].map((key) => ({ relation, key }));
}
