/**
 * Whether a row that was written in replica role, which no foreign key is checked in, has left one broken: PostgreSQL's own
 * check of a foreign key, made by hand. A row that another one refers to is locked as that check would lock it, so that it
 * can't go before this transaction ends.
 */
import { quoteIdent } from '../../core/postgres.js';
import { columnAt, keyEquals, keyIndexes } from '../postgres/apply-sql.js';
import type { ApplyTable, Key } from '../postgres/apply-table.js';
import { run, textOf, type Session } from '../postgres/statement.js';

interface ForeignKey {
  readonly name: string;
  /** Quoted; with ONLY where the table is not partitioned. */
  readonly referencing: string;
  readonly referenced: string;
  /** Of the table that is asked about: it refers, or is referred to. */
  readonly outbound: boolean;
  readonly full: boolean;
  readonly columns: readonly Pair[];
}

interface Pair {
  readonly mine: string;
  readonly theirs: string;
  readonly theirType: string;
  /** Referenced = referencing. */
  readonly operator: string;
  /** Referenced = referenced. */
  readonly same: string;
}

/** A key that some row may refer to. */
export interface Referenced {
  readonly key: ForeignKey;
  readonly values: readonly string[];
}

const FOREIGN_KEYS_SQL = `
SELECT k.conname AS name, k.conrelid = $1::regclass AND NOT by.reversed AS outbound, k.confmatchtype = 'f' AS full_match,
  CASE WHEN c.relkind = 'p' THEN '' ELSE 'ONLY ' END || k.conrelid::regclass AS referencing,
  CASE WHEN f.relkind = 'p' OR f.relispartition AND k.conparentid <> 0 THEN '' ELSE 'ONLY ' END ||
    CASE WHEN f.relispartition AND k.conparentid <> 0 THEN pg_catalog.pg_partition_root(k.confrelid)
      ELSE k.confrelid END::regclass AS referenced,
  (SELECT pg_catalog.json_agg(pg_catalog.json_build_object('mine', a.attname, 'theirs', fa.attname,
      'theirType', pg_catalog.format_type(fa.atttypid, fa.atttypmod),
      'operator', pg_catalog.format('OPERATOR(%I.%s)', n.nspname, o.oprname),
      'same', pg_catalog.format('OPERATOR(%I.%s)', sn.nspname, so.oprname)) ORDER BY p.place)
    FROM unnest(k.conkey, k.confkey, k.conpfeqop, k.conppeqop) WITH ORDINALITY AS p(mine, theirs, op, same, place)
    JOIN pg_catalog.pg_operator so ON so.oid = p.same JOIN pg_catalog.pg_namespace sn ON sn.oid = so.oprnamespace
    JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = p.mine
    JOIN pg_catalog.pg_attribute fa ON fa.attrelid = k.confrelid AND fa.attnum = p.theirs
    JOIN pg_catalog.pg_operator o ON o.oid = p.op JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace) AS columns
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_class f ON f.oid = k.confrelid
CROSS JOIN (VALUES (false), (true)) AS by(reversed)
WHERE k.contype = 'f' AND pg_catalog.to_jsonb(k) ->> 'conenforced' IS DISTINCT FROM 'false'
  AND CASE WHEN by.reversed THEN k.confrelid ELSE k.conrelid END = $1::regclass
ORDER BY 1`;

async function readForeignKeys(session: Session, table: ApplyTable): Promise<readonly ForeignKey[]> {
  const { rows } = await run(
    session,
    { text: FOREIGN_KEYS_SQL, values: [table.sql] },
    { what: `reading the foreign keys of ${table.name}` },
  );
  return rows.map((row) => ({
    name: textOf(row, 'name'),
    referencing: textOf(row, 'referencing'),
    referenced: textOf(row, 'referenced'),
    outbound: row['outbound'] === 't',
    full: row['full_match'] === 't',
    columns: JSON.parse(textOf(row, 'columns')) as Pair[],
  }));
}

function rowOf(table: ApplyTable, key: Key): { readonly where: string; readonly values: string[] } {
  const indexes = keyIndexes(table);
  const where = keyEquals(table, 't', (column) => {
    const { type } = columnAt(table, column);
    return `$${indexes.indexOf(column) + 1}::${type}`;
  });
  return { where, values: [...key] };
}

/** What of the row with this key others may refer to. To be asked before the row is written. */
export async function readReferenced(
  session: Session,
  table: ApplyTable,
  key: Key,
): Promise<readonly Referenced[]> {
  const found: Referenced[] = [];
  for (const foreign of await readForeignKeys(session, table)) {
    if (foreign.outbound) continue;
    const columns = foreign.columns.map(({ theirs }) => `t.${quoteIdent(theirs)}::text`).join(', ');
    const { where, values } = rowOf(table, key);
    const { rows } = await run(
      session,
      {
        text: `SELECT pg_catalog.to_json(ARRAY[${columns}]) AS parts FROM ${table.only} AS t WHERE ${where}`,
        values,
      },
      { what: `reading a row of ${table.name}`, carriesRows: true },
    );
    const parts = rows[0]?.['parts'];
    if (parts == null) continue;
    const held = JSON.parse(parts) as (string | null)[];
    if (held.every((part) => part !== null)) found.push({ key: foreign, values: held });
  }
  return found;
}

/**
 * The name of a foreign key that the row with this key breaks, or that is broken by what `referenced` held and is gone;
 * null where none is. In the transaction that wrote the row.
 */
export async function brokenForeignKey(
  session: Session,
  table: ApplyTable,
  key: Key,
  referenced: readonly Referenced[],
): Promise<string | null> {
  const purpose = { what: `checking the foreign keys of ${table.name}`, carriesRows: true };
  for (const foreign of await readForeignKeys(session, table)) {
    if (!foreign.outbound) continue;
    const { where, values } = rowOf(table, key);
    const mine = foreign.columns.map(({ mine: name }) => `t.${quoteIdent(name)}`);
    const matches = foreign.columns
      .map(({ mine: name, theirs, operator }) => `f.${quoteIdent(theirs)} ${operator} t.${quoteIdent(name)}`)
      .join(' AND ');
    const nulls = `pg_catalog.num_nulls(${mine.join(', ')})`;
    const locked = await run(
      session,
      {
        text: `SELECT FROM ${table.only} AS t JOIN ${foreign.referenced} AS f ON ${matches} WHERE ${where} FOR KEY SHARE OF f`,
        values,
      },
      purpose,
    );
    if ((locked.rowCount ?? 0) > 0) continue;
    const allowed = foreign.full ? `${nulls} < ${mine.length}` : `${nulls} = 0`;
    const { rows } = await run(
      session,
      {
        text: `SELECT EXISTS (SELECT FROM ${table.only} AS t WHERE ${where} AND ${allowed}) AS broken`,
        values,
      },
      purpose,
    );
    if (rows[0]?.['broken'] === 't') return foreign.name;
  }
  for (const { key: foreign, values } of referenced) {
    const parameter = (at: number): string => `$${at + 1}::text::${foreign.columns[at]?.theirType ?? 'text'}`;
    const there = foreign.columns
      .map(({ theirs, same }, at) => `f.${quoteIdent(theirs)} ${same} ${parameter(at)}`)
      .join(' AND ');
    const children = foreign.columns
      .map(({ mine, operator }, at) => `${parameter(at)} ${operator} c.${quoteIdent(mine)}`)
      .join(' AND ');
    const { rows } = await run(
      session,
      {
        text: `SELECT EXISTS (SELECT FROM ${foreign.referencing} AS c WHERE ${children})
          AND NOT EXISTS (SELECT FROM ${foreign.referenced} AS f WHERE ${there}) AS broken`,
        values: [...values],
      },
      purpose,
    );
    if (rows[0]?.['broken'] === 't') return foreign.name;
  }
  return null;
}
