/** Types whose values, in binary form, carry OIDs that are others on the other side. */
import type { Finding, Side } from '../core/ports.js';
import type { Session } from './session.js';

/** What each type is made of, and whether an OID of the database's own stands in its binary form on the way there. */
const CARRYING_SQL = `
WITH RECURSIVE part (root, oid, carries) AS (
  SELECT t.oid, t.oid, false FROM pg_catalog.pg_type t WHERE t.oid = ANY ($1::pg_catalog.oid[])
  UNION
  SELECT p.root, x.oid, x.carries FROM part p JOIN LATERAL (
    SELECT t.typelem AS oid, t.typelem >= 16384 AS carries FROM pg_catalog.pg_type t
     WHERE t.oid = p.oid AND t.typelem <> 0 AND t.typlen = -1
    UNION ALL
    SELECT t.typbasetype, false FROM pg_catalog.pg_type t WHERE t.oid = p.oid AND t.typbasetype <> 0
    UNION ALL
    SELECT r.rngsubtype, false FROM pg_catalog.pg_range r WHERE r.rngtypid = p.oid
    UNION ALL
    SELECT a.atttypid, a.atttypid >= 16384 FROM pg_catalog.pg_type t
      JOIN pg_catalog.pg_attribute a ON a.attrelid = t.typrelid
     WHERE t.oid = p.oid AND t.typrelid <> 0 AND a.attnum > 0 AND NOT a.attisdropped
  ) x ON true
)
SELECT DISTINCT pg_catalog.format_type(root, NULL) AS name FROM part WHERE carries ORDER BY 1`;

/** `types`: OIDs on `side`, which `session` asks, that sessions have used in binary form. */
export async function binaryTypeFindings(
  session: Session,
  side: Side,
  types: readonly number[],
): Promise<readonly Finding[]> {
  if (types.length === 0) return [];
  const { rows } = await session.run(CARRYING_SQL, [`{${types.join(',')}}`]);
  return rows.map(({ name }) => ({
    severity: 'warning',
    check: 'binary-own-type',
    side,
    object: name ?? '',
    message:
      'clients use it in binary form, in which its values carry the OIDs of types; these are others on the other side',
    advice: 'Have those clients use it as text, or connect anew after the switch.',
  }));
}
