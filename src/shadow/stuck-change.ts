/** Names the one change of a flush that the other side refuses, without telling a value of its row. */
import { createHash } from 'node:crypto';
import type { Direction, StuckChange } from '../core/ports.js';
import { formatLsn } from '../core/position.js';
import { UnderstudyError } from '../core/errors.js';
import type { RelationMessage } from '../wire/postgres/pgoutput.js';
import type { Flush } from './flush.js';
import { bindRow, type Binding } from './postgres/apply-table.js';
import { sqlStateOf } from './postgres/statement.js';
import type { Change } from './postgres/transactions.js';

/** Digits of the key's hash: enough to find one row among millions. */
const HASH_DIGITS = 12;

/** Whether the server has refused what the changes say: trying the same again can't help. */
export function isRefusal(error: unknown): error is UnderstudyError {
  return error instanceof UnderstudyError && !error.retryable && sqlStateOf(error) !== undefined;
}

/** The error that stops a lane at `change`. Its details hold the {@link StuckChange} as `stuck`. */
export function stuckAt(
  direction: Direction,
  flush: Flush,
  change: Change,
  bindingOf: (relation: RelationMessage) => Binding,
  error: UnderstudyError,
): UnderstudyError {
  const part = flush.parts.find(({ changes }) => changes.includes(change));
  const [relation] = change.kind === 'truncate' ? change.relations : [change.relation];
  const binding = relation === undefined ? undefined : bindingOf(relation);
  const key = binding === undefined ? null : keyOfChange(binding, change);
  const stuck: StuckChange = {
    direction,
    table: binding?.table.name ?? '',
    kind: change.kind,
    keyColumns: (binding?.table.key ?? []).map((index) => binding?.table.columns[index]?.name ?? ''),
    keyHash: key === null ? null : createHash('md5').update(key).digest('hex').slice(0, HASH_DIGITS),
    position: formatLsn(part?.commitLsn ?? 0n),
    ordinal: part === undefined ? 0 : part.firstChange + part.changes.indexOf(change),
    sqlState: sqlStateOf(error) ?? '',
  };
  const row =
    stuck.keyHash === null
      ? ''
      : ` of the row whose (${stuck.keyColumns.join(', ')}) has md5 ${stuck.keyHash}…`;
  return new UnderstudyError(
    'apply-failed',
    `the ${stuck.kind}${row} in ${stuck.table} at ${stuck.position} is refused: ${error.message}`,
    {
      advice:
        'Take away on the other side what refuses it, and it is applied by itself; or leave it out with `understudy shadow skip`, and mend the row with `understudy verify --repair`.',
      details: { stuck: JSON.stringify(stuck), sqlState: stuck.sqlState },
    },
  );
}

/** The change at which a lane is stuck, from the error that stopped it; null for any other error. */
export function stuckChangeOf(error: UnderstudyError): StuckChange | null {
  const { stuck } = error.details;
  return error.code === 'apply-failed' && typeof stuck === 'string'
    ? (JSON.parse(stuck) as StuckChange)
    : null;
}

function keyOfChange(binding: Binding, change: Change): string | null {
  if (change.kind === 'truncate' || binding.table.key === null) return null;
  const tuple = change.kind === 'delete' ? change.old.row : change.row;
  const row = bindRow(binding, tuple);
  return binding.table.key.map((index) => row[index] ?? '').join(',');
}
