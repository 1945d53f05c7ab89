/** Tells when a schema is no longer the one the shadow was built from. */
import type { CatalogFingerprint, DatabaseEndpoint, ShadowWarning, Side } from '../core/ports.js';
import { diffFingerprints, readFingerprint } from './postgres/fingerprint.js';
import { withSession } from './postgres/statement.js';

/** Reads the catalogs of `side` and names the first object that differs from `built`; null where none does. */
export async function catalogWarning(
  side: Side,
  endpoint: DatabaseEndpoint,
  built: CatalogFingerprint,
): Promise<ShadowWarning | null> {
  const now = await withSession(side, endpoint, 'catalog', (session) => readFingerprint(session.client));
  const differences = diffFingerprints(built, now);
  const [first] = differences;
  if (first === undefined) return null;
  const more = differences.length > 1 ? `, and ${differences.length - 1} more` : '';
  return {
    code: 'catalog-changed',
    message: `${side}: ${first.object} was ${first.change}${more} since the shadow was built`,
  };
}
