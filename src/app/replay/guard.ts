/**
 * A replay writes. It must not write into the migration that it is meant to prepare, also where that goes by another
 * name: a server is known by its address, and by its system identifier where it tells it.
 */
import type pg from 'pg';
import { UnderstudyError } from '../../core/errors.js';
import type { DatabaseEndpoint } from '../../core/ports.js';
import { connectControl } from '../../core/postgres.js';
import { endpointText, isLoopback } from '../config/endpoint.js';

const CONNECT_TIMEOUT_MS = 5_000;

export interface MigrationSides {
  readonly source: DatabaseEndpoint;
  readonly destination: DatabaseEndpoint;
}

/**
 * Throws `replay-refused` where `target` is a side of the migration, or holds Understudy's own schema, and so belongs to
 * some migration. Throws `destination-unreachable` where it can't be reached.
 */
export async function guardTarget(target: DatabaseEndpoint, sides: MigrationSides | null): Promise<void> {
  for (const side of ['source', 'destination'] as const) {
    if (sides !== null && sameAddress(target, sides[side]))
      throw refused(target, `is the ${side} of the configuration`);
  }
  const client = await connectControl('destination', target, {
    purpose: 'replay',
    connectTimeoutMs: CONNECT_TIMEOUT_MS,
  });
  try {
    const { rows } = await client.query<{ found: string }>(
      `SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'understudy') AS found`,
    );
    if (rows[0]?.found === 't')
      throw refused(target, 'holds the schema `understudy`: it is part of a migration');
    const identity = await systemIdentifier(client);
    for (const side of ['source', 'destination'] as const) {
      if (sides === null || identity === null || sides[side].database !== target.database) continue;
      if ((await identityOf(sides[side])) === identity)
        throw refused(target, `is the ${side} of the configuration, by another name`);
    }
  } finally {
    await client.end();
  }
}

function refused(target: DatabaseEndpoint, why: string): UnderstudyError {
  return new UnderstudyError('replay-refused', `${endpointText(target)} ${why}, and a replay writes`, {
    advice: 'Replay against a copy made for it. --yes-write says that you mean this database.',
  });
}

/** Null where the server does not tell it. */
async function systemIdentifier(client: pg.Client): Promise<string | null> {
  try {
    const { rows } = await client.query<{ system_identifier: string }>(
      'SELECT system_identifier FROM pg_catalog.pg_control_system()',
    );
    return rows[0]?.system_identifier ?? null;
  } catch {
    return null;
  }
}

async function identityOf(endpoint: DatabaseEndpoint): Promise<string | null> {
  try {
    const client = await connectControl('source', endpoint, {
      purpose: 'replay',
      connectTimeoutMs: CONNECT_TIMEOUT_MS,
    });
    try {
      return await systemIdentifier(client);
    } finally {
      await client.end();
    }
  } catch {
    // A side that is down is not the database that answers.
    return null;
  }
}

export function sameAddress(one: DatabaseEndpoint, other: DatabaseEndpoint): boolean {
  const sameHost =
    one.host.toLowerCase() === other.host.toLowerCase() || (isLoopback(one.host) && isLoopback(other.host));
  return sameHost && one.port === other.port && one.database === other.database;
}
