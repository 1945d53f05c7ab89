/** Short errands of the composition root's own on the databases. */
import type pg from 'pg';
import type { DatabaseEndpoint, Finding, Side, SubsetRules, SubsetTie } from '../core/ports.js';
import { connectControl } from '../core/postgres.js';
import { readNamedOids, type NamedOids } from '../proxy/session/type-oids.js';
import type { PreflightSettings } from '../shadow/postgres/preflight.js';
import { readSessionHints, type SessionHints } from '../shadow/postgres/preflight-sessions.js';

export interface Endpoints {
  readonly source: DatabaseEndpoint;
  readonly destination: DatabaseEndpoint;
}

async function withConnection<T>(
  side: Side,
  endpoint: DatabaseEndpoint,
  purpose: string,
  errand: (client: pg.Client) => Promise<T>,
): Promise<T> {
  const client = await connectControl(side, endpoint, { purpose });
  try {
    return await errand(client);
  } finally {
    await client.end().catch(() => undefined);
  }
}

/** What would stop a switch now. */
export async function inspectForCutover(
  endpoints: Endpoints & { readonly subsets: readonly SubsetRules[] },
  {
    migrationId,
    method,
    format,
  }: Pick<PreflightSettings, 'migrationId' | 'format'> & Required<Pick<PreflightSettings, 'method'>>,
  signal: AbortSignal,
): Promise<readonly Finding[]> {
  // Loaded when it is needed: a proxy that only serves never needs them.
  const [{ inspectPair }, { subsetFindings }, { crossingFindings }] = await Promise.all([
    import('../shadow/postgres/preflight.js'),
    import('./subset-findings.js'),
    import('./crossing.js'),
  ]);
  return onBoth(endpoints, 'preflight', async (source, destination) => {
    signal.throwIfAborted();
    const settings = { migrationId, method, format, purpose: 'cutover' } as const;
    const { subsets } = endpoints;
    return [
      ...(await inspectPair(source, destination, settings)),
      ...(await subsetFindings(source, subsets)),
      ...(await crossingFindings(source, destination, subsets)),
    ];
  });
}

export function onBoth<T>(
  endpoints: Endpoints,
  purpose: string,
  errand: (source: pg.Client, destination: pg.Client) => Promise<T>,
): Promise<T> {
  return withConnection('source', endpoints.source, purpose, (source) =>
    withConnection('destination', endpoints.destination, purpose, (destination) =>
      errand(source, destination),
    ),
  );
}

/** Which subsets are not to be parted. */
export async function subsetTies(
  endpoints: Endpoints & { readonly subsets: readonly SubsetRules[] },
  signal: AbortSignal,
): Promise<readonly SubsetTie[]> {
  return onBoth(endpoints, 'ties', async (source, destination) => {
    signal.throwIfAborted();
    const { readSubsetTies } = await import('./subset-ties.js');
    return await readSubsetTies(source, destination, endpoints.subsets);
  });
}

export async function namedOids(endpoints: Endpoints, side: Side): Promise<NamedOids> {
  return withConnection(side, endpoints[side], 'type OIDs', readNamedOids);
}

export async function sessionHints(endpoints: Endpoints, side: Side): Promise<SessionHints> {
  return withConnection(side, endpoints[side], 'session hints', readSessionHints);
}
