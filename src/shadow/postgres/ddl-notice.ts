/**
 * Tells the stream of every change to the source's schema at once: an event trigger that leaves a message in the log, in
 * the transaction that made the change. Where the account may not make one, the catalogs are compared now and then.
 *
 * A rewrite that makes other values of a table's columns (`ALTER COLUMN … TYPE … USING`) is counted in understudy.rewrite,
 * as nothing else tells of it: the log doesn't, and the definition may stay as it was. Adding a column, another
 * persistence or access method, VACUUM FULL and CLUSTER leave the values, and are not counted.
 *
 * It must never fail the application's statement: whatever goes wrong in it is swallowed. It is silent for temporary
 * objects, and for Understudy's own connections.
 *
 * A partition made of a published root without a key is published at once, with no identity: the application's next
 * UPDATE there would fail. So the trigger gives it one in the same transaction, recorded as all identities are.
 */
import { quoteLiteral } from '../../core/postgres.js';
import { LOG_MESSAGE_PREFIX, type Side } from '../../core/ports.js';
import { inTransaction, run, sqlStateOf, type Session } from './statement.js';

/** insufficient_privilege */
const NOT_ALLOWED = '42501';

/** AT_REWRITE_COLUMN_REWRITE of PostgreSQL's event_trigger.h. */
const COLUMN_REWRITE = 4;

const REWRITES_SQL = `CREATE TABLE IF NOT EXISTS understudy.rewrite (
  relation oid NOT NULL,
  at timestamptz NOT NULL DEFAULT pg_catalog.now()
)`;

const FUNCTION_SQL = `
CREATE OR REPLACE FUNCTION understudy.note_ddl() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
  made record;
BEGIN
  IF current_setting('application_name') LIKE 'understudy %' THEN RETURN; END IF;
  IF tg_event = 'table_rewrite' THEN
    IF pg_event_trigger_table_rewrite_reason() & ${COLUMN_REWRITE} <> 0 THEN
      INSERT INTO understudy.rewrite (relation) SELECT c.oid FROM pg_class c
        WHERE c.oid = pg_event_trigger_table_rewrite_oid() AND c.relpersistence <> 't';
    END IF;
    RETURN;
  ELSIF tg_event = 'ddl_command_end' THEN
    IF NOT EXISTS (SELECT FROM pg_event_trigger_ddl_commands() c WHERE c.schema_name IS DISTINCT FROM 'pg_temp') THEN
      RETURN;
    END IF;
    FOR made IN
      SELECT n.nspname, c.relname, format('%I.%I', n.nspname, c.relname) AS name
      FROM pg_event_trigger_ddl_commands() e
      JOIN pg_class c ON e.classid = 'pg_class'::regclass AND c.oid = e.objid AND c.relkind = 'r'
        AND c.relispartition AND c.relreplident = 'd'
      JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate)
        AND EXISTS (SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
          WHERE p.pubname LIKE 'understudy\\_%' AND r.prrelid IN (SELECT a.relid FROM pg_partition_ancestors(c.oid) a))
    LOOP
      INSERT INTO understudy.identity_change (schema_name, table_name, before)
        VALUES (made.nspname, made.relname, 'd') ON CONFLICT DO NOTHING;
      EXECUTE 'ALTER TABLE ONLY ' || made.name || ' REPLICA IDENTITY FULL';
    END LOOP;
  ELSIF NOT EXISTS (SELECT FROM pg_event_trigger_dropped_objects() d WHERE NOT d.is_temporary) THEN
    RETURN;
  END IF;
  PERFORM pg_logical_emit_message(true, ${quoteLiteral(LOG_MESSAGE_PREFIX)}, ${quoteLiteral(JSON.stringify({ t: 'ddl' }))});
EXCEPTION WHEN OTHERS THEN
  NULL;
END $body$`;

const TRIGGERS = [
  ['understudy_ddl', 'ddl_command_end'],
  ['understudy_drop', 'sql_drop'],
  ['understudy_rewrite', 'table_rewrite'],
] as const;

/** What is to be known where there is none. */
export function noNotice(side: Side): string {
  return (
    `no event trigger may be made on the ${side}: its catalogs are compared instead, and a rewrite that keeps the ` +
    'column’s type (ALTER COLUMN … TYPE … USING) is found by verify alone'
  );
}

/** Installs it where that is allowed; false where it is not. Idempotent. */
export async function installDdlNotice(source: Session): Promise<boolean> {
  const what = 'installing the event trigger';
  const { rows } = await run(
    source,
    {
      text: `SELECT pg_catalog.count(*) AS there FROM pg_catalog.pg_event_trigger WHERE evtname = ANY ($1::text[])`,
      values: [TRIGGERS.map(([name]) => name)],
    },
    { what },
  );
  if (rows[0]?.['there'] === String(TRIGGERS.length)) return true;
  try {
    await inTransaction(source, what, async () => {
      await run(source, REWRITES_SQL, { what });
      await run(source, FUNCTION_SQL, { what });
      for (const [name, event] of TRIGGERS) {
        await run(source, `DROP EVENT TRIGGER IF EXISTS ${name}`, { what });
        await run(source, `CREATE EVENT TRIGGER ${name} ON ${event} EXECUTE FUNCTION understudy.note_ddl()`, {
          what,
        });
      }
    });
    return true;
  } catch (error) {
    if (sqlStateOf(error) !== NOT_ALLOWED) throw error;
    return false;
  }
}
