/** What several readers of the catalogs ask alike. */

/** Of `n`, a pg_namespace: one of the application's. */
export const OURS_SQL = `n.nspname NOT IN ('pg_catalog', 'information_schema', 'understudy')
  AND n.nspname NOT LIKE 'pg\\_toast%' AND n.nspname NOT LIKE 'pg\\_temp%'`;

/** Whether the object `oid` of `catalog` came with an extension. */
export function ofExtensionSql(catalog: string, oid: string): string {
  return `EXISTS (SELECT 1 FROM pg_catalog.pg_depend e
  WHERE e.classid = 'pg_catalog.${catalog}'::pg_catalog.regclass AND e.objid = ${oid} AND e.deptype = 'e')`;
}

/** A sequence `seq` and a table `tab` that owns it or has it in a default; other relations may be among `seq`. */
export const SEQUENCE_USES_SQL = `
    SELECT d.refobjid AS seq, f.adrelid AS tab FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_attrdef f ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND f.oid = d.objid
    WHERE d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
    UNION
    SELECT d.objid, d.refobjid FROM pg_catalog.pg_depend d
    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
      AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype IN ('a', 'i')`;
