/** What stands in the way of a switch and is known only where clients are served: by a running process. */
import type pg from 'pg';
import type { Finding, Side } from '../core/ports.js';
import { binaryTypeFindings } from '../cutover/binary-types.js';
import { Session } from '../cutover/session.js';
import type { AdminClient } from './admin-client.js';

/**
 * Asks the process that answers at `admin` which of the database's own types its clients have used in binary, and each
 * side which of them carry OIDs. One that does not answer, or serves another migration, adds nothing.
 */
export async function clientFindings(
  admin: AdminClient,
  migration: string,
  connections: Readonly<Record<Side, pg.Client | undefined>>,
): Promise<readonly Finding[]> {
  const status = await admin.status().catch(() => null);
  if (status === null || status.migration !== migration) return [];
  // A process of an earlier version doesn't tell.
  const used: Partial<Readonly<Record<Side, readonly number[]>>> | undefined = status.proxy.binaryTypes;
  const findings: Finding[] = [];
  for (const side of ['source', 'destination'] satisfies Side[]) {
    const client = connections[side];
    if (client === undefined) continue;
    findings.push(...(await binaryTypeFindings(new Session(side, client, 0), side, used?.[side] ?? [])));
  }
  return findings;
}
