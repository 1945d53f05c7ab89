/**
 * Whether rows that were read on the leading side may take the place of the other side's. A read that comes late must not
 * overwrite what the other side has taken since: so the transaction that writes holds, to its end, the record that says who
 * leads. Forward that is the route, which a cutover's commit changes; on the way back the source's fence, which the end of
 * a rollback lowers. Neither can pass while the transaction runs.
 */
import type { SubsetId } from '../core/ports.js';
import { authorityOf, type Authority } from './authority.js';
import { readWritable } from './follow/authority.js';
import { run, textOf, type Session } from './postgres/statement.js';

/**
 * The subsets whose rows may be written over on that side now; what says so is held to the transaction's end. `authority`:
 * of the stream that writes, where the fence may also be that of another switch, which is not committed.
 */
export async function heldFor(
  target: Session,
  subsets: ReadonlySet<SubsetId>,
  authority?: Authority,
): Promise<ReadonlySet<SubsetId>> {
  return target.side === 'destination'
    ? await readWritable(target, subsets)
    : await readFenced(target, subsets, authority);
}

/** Without a record of a fence there is none to be lowered. */
async function readFenced(
  source: Session,
  subsets: ReadonlySet<SubsetId>,
  authority: Authority | undefined,
): Promise<ReadonlySet<SubsetId>> {
  const what = 'asking whether the source is fenced';
  const found = await run(source, `SELECT pg_catalog.to_regclass('understudy.epoch') IS NOT NULL AS found`, {
    what,
  });
  if (found.rows[0]?.['found'] !== 't') return subsets;
  const { rows } = await run(
    source,
    'SELECT subset, epoch FROM understudy.epoch WHERE fenced ORDER BY subset FOR SHARE',
    { what },
  );
  const held = rows.flatMap((row) => {
    const subset = textOf(row, 'subset');
    if (authority === undefined) return subset;
    const { authoritative, epoch } = authorityOf(authority, subset);
    return authoritative && epoch === Number(textOf(row, 'epoch')) ? subset : [];
  });
  return new Set(held);
}
