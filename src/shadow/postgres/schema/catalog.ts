/**
 * Shared pieces of the queries that read the catalogs.
 *
 * All of them expect a control connection: values as text, an empty search_path. With that, pg_catalog is still
 * searched first, and every name that the server deparses from another schema comes out qualified.
 */
import type pg from 'pg';
import { asUnderstudyError } from '../../../core/errors.js';

/** A reader's view of the source: the connection, and what depends on the versions of both servers. */
export interface Catalog {
  readonly client: pg.Client;
  /** `server_version_num` of the server that is read. */
  readonly versionNum: number;
  /** `server_version_num` of the server the statements will run on. */
  readonly destinationVersionNum: number;
}

export async function readVersionNum(client: pg.Client): Promise<number> {
  const { rows } = await client.query<{ version: string }>(
    `SELECT current_setting('server_version_num') AS version`,
  );
  return Number(rows[0]?.version);
}

export async function rowsOf<T extends pg.QueryResultRow>(
  client: pg.Client,
  what: string,
  sql: string,
): Promise<readonly T[]> {
  try {
    return (await client.query<T>(sql)).rows;
  } catch (error) {
    throw asUnderstudyError(error, 'source-query-failed', `reading ${what} from the catalogs`);
  }
}

/** Condition: the schema `alias` is the application's, not the server's, and not Understudy's own. */
export function userSchema(alias: string): string {
  return `${alias}.nspname !~ '^pg_' AND ${alias}.nspname NOT IN ('information_schema', 'understudy')`;
}

/** Condition: the object is no member of an extension, which creates its members itself. */
export function notOfExtension(catalog: string, oid: string): string {
  return `NOT EXISTS (SELECT FROM pg_depend ext WHERE ext.classid = '${catalog}'::regclass AND ext.objid = ${oid} AND ext.deptype = 'e')`;
}

/** Text of a JSON array of `T`, as json_agg makes it in a query of ours. The property exists for the compiler alone. */
export type JsonList<T> = string & { readonly item?: T };

/** No rows aggregate to null: an empty list. */
export function parseList<T>(json: JsonList<T> | null): readonly T[] {
  return json === null ? [] : (JSON.parse(json) as T[]);
}
