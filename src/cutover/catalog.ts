import { tellsOfRows } from '../core/fingerprint-entries.js';
import type { CatalogFingerprint, Side } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';

const NAMED_MAX = 5;

/** Throws `catalog-changed`, naming the objects, where `now` is not what the shadow was built from. */
export function assertSameCatalog(side: Side, built: CatalogFingerprint, now: CatalogFingerprint): void {
  const objects = [...new Set([...Object.keys(built), ...Object.keys(now)])].sort();
  const changes = objects.flatMap((object): readonly string[] => {
    if (built[object] === now[object]) return [];
    const how = built[object] === undefined ? 'is new' : now[object] === undefined ? 'is gone' : 'changed';
    if (how !== 'changed' && tellsOfRows(object)) return [];
    return [`${object} ${how}`];
  });
  if (changes.length === 0) return;
  const more = changes.length > NAMED_MAX ? ` and ${changes.length - NAMED_MAX} more` : '';
  throw new UnderstudyError(
    'catalog-changed',
    `the ${side}’s schema is not the one the shadow was built with: ${changes.slice(0, NAMED_MAX).join(', ')}${more}`,
    {
      advice: `Undo the change on the ${side}, or make the same change on both sides and rebuild the shadow.`,
      details: { side, changes },
    },
  );
}
