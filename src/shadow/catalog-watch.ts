/** What each side's schema was when the shadow was built, and whether it is that still. */
import type { CatalogFingerprint, DatabaseEndpoint, ShadowWarning, Side } from '../core/ports.js';
import { notReady } from './condition.js';
import { diffFingerprints, readFingerprint, type FingerprintDifference } from './postgres/fingerprint.js';
import { readFingerprintRecord } from './postgres/schema-records.js';
import { withSession } from './postgres/statement.js';

/** The fingerprint of `side` as recorded on the destination. Throws `shadow-not-ready` where none is yet. */
export async function readBuiltFingerprint(
  side: Side,
  destination: DatabaseEndpoint,
): Promise<CatalogFingerprint> {
  const recorded = await withSession('destination', destination, 'fingerprint', (session) =>
    readFingerprintRecord(session, side),
  );
  if (recorded === null) throw notReady('schema');
  return recorded;
}

/** Reads the catalogs of `side`: what differs from `built`. */
export async function catalogDifferences(
  side: Side,
  endpoint: DatabaseEndpoint,
  built: CatalogFingerprint,
): Promise<readonly FingerprintDifference[]> {
  const now = await withSession(side, endpoint, 'catalog', (session) => readFingerprint(session.client));
  return diffFingerprints(built, now);
}

/** Names the first object that differs; null where none does. */
export function catalogWarning(
  side: Side,
  differences: readonly FingerprintDifference[],
): ShadowWarning | null {
  const [first] = differences;
  if (first === undefined) return null;
  const more = differences.length > 1 ? `, and ${differences.length - 1} more` : '';
  return {
    code: 'catalog-changed',
    message: `${side}: ${first.object} was ${first.change}${more} since the shadow was built`,
  };
}
