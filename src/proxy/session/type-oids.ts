/**
 * What stands for which OID on the other side.
 *
 * Types, relations and functions that are not part of PostgreSQL itself get their OIDs as they are made, so the two
 * sides' differ. A client may have learnt one side's: from ParameterDescription, from pg_type as it connected. A
 * session that has moved therefore goes on seeing the OIDs of the side it began on; one that begins after the switch
 * sees those of its own server.
 *
 * Both sides are asked by name (schema, name and kind) each time sessions are prepared for a move; a change of the
 * catalogs between that and the fence makes the cutover abort. What is made after the switch has no entry and is told
 * as it is.
 */
import type pg from 'pg';
import type { Side } from '../../core/ports.js';
import type { OidMap } from '../../wire/postgres/oid-fields.js';

/** OIDs of one side by kind and qualified name. */
export interface NamedOids {
  readonly types: ReadonlyMap<string, number>;
  readonly relations: ReadonlyMap<string, number>;
  readonly functions: ReadonlyMap<string, number>;
}

/** From the one side's OIDs to the other's. */
export interface OidMaps {
  readonly types: OidMap;
  readonly relations: OidMap;
  readonly functions: OidMap;
}

/** For a session that sits on another side than the one it began on. */
export interface SessionOids {
  /** From the client's, which are of the side it began on, to the server's. */
  readonly toServer: OidMaps;
  readonly toClient: OidMaps;
}

/**
 * OIDs from 10,000 on are given out as objects are made: by initdb, whose order differs between versions, and from
 * 16,384 on by users. https://www.postgresql.org/docs/current/system-catalog-initial-data.html#SYSTEM-CATALOG-OID-ASSIGNMENT
 *
 * An array type is known by its element, as its own name depends on which others were taken.
 */
const NAMED_OIDS_SQL = `
SELECT 'types' AS kind, t.oid,
       CASE WHEN e.oid IS NULL THEN pg_catalog.format('%s %I.%I', t.typtype, n.nspname, t.typname)
            ELSE pg_catalog.format('array of %I.%I', m.nspname, e.typname) END AS name
  FROM pg_catalog.pg_type t
  JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
  LEFT JOIN pg_catalog.pg_type e ON e.typarray = t.oid
  LEFT JOIN pg_catalog.pg_namespace m ON m.oid = e.typnamespace
 WHERE t.oid >= 10000 AND n.nspname !~ '^pg_(toast|temp)'
UNION ALL
SELECT 'relations', c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid >= 10000 AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c') AND n.nspname !~ '^pg_(toast|temp)'
UNION ALL
SELECT 'functions', p.oid,
       pg_catalog.format('%I.%I(%s)', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid))
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
 WHERE p.oid >= 10000 AND n.nspname !~ '^pg_temp'`;

/** Asks over a control connection, whose empty search_path makes every name a qualified one. */
export async function readNamedOids(client: pg.Client): Promise<NamedOids> {
  const { rows } = await client.query<{ kind: keyof NamedOids; oid: string; name: string }>(NAMED_OIDS_SQL);
  const named = {
    types: new Map<string, number>(),
    relations: new Map<string, number>(),
    functions: new Map<string, number>(),
  };
  for (const { kind, oid, name } of rows) named[kind].set(name, Number(oid));
  return named;
}

export class TypeOids {
  #fromSource: OidMaps | null = null;
  #fromDestination: OidMaps | null = null;

  update(source: NamedOids, destination: NamedOids): void {
    this.#fromSource = mapsBetween(source, destination);
    this.#fromDestination = mapsBetween(destination, source);
  }

  /** Null where the session is where it began, or where nothing differs. */
  for(began: Side, present: Side): SessionOids | null {
    if (began === present || this.#fromSource === null || this.#fromDestination === null) return null;
    return began === 'source'
      ? { toServer: this.#fromSource, toClient: this.#fromDestination }
      : { toServer: this.#fromDestination, toClient: this.#fromSource };
  }
}

/** Null where no OID differs. */
function mapsBetween(from: NamedOids, to: NamedOids): OidMaps | null {
  const maps = {
    types: mapBetween(from.types, to.types),
    relations: mapBetween(from.relations, to.relations),
    functions: mapBetween(from.functions, to.functions),
  };
  return maps.types.size + maps.relations.size + maps.functions.size === 0 ? null : maps;
}

function mapBetween(from: ReadonlyMap<string, number>, to: ReadonlyMap<string, number>): OidMap {
  const map = new Map<number, number>();
  for (const [name, oid] of from) {
    const other = to.get(name);
    if (other !== undefined && other !== oid) map.set(oid, other);
  }
  return map;
}
