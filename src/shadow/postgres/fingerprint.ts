import type pg from 'pg';
import type { CatalogFingerprint } from '../../core/ports.js';
import { UnderstudyError } from '../../core/errors.js';

export interface FingerprintDifference {
  readonly object: string;
  readonly change: 'added' | 'removed' | 'changed';
}

/** One hash per catalog object, keyed `table public.orders`. */
export async function readFingerprint(_client: pg.Client): Promise<CatalogFingerprint> {
  throw new UnderstudyError('internal', 'not built');
}

export function diffFingerprints(
  built: CatalogFingerprint,
  now: CatalogFingerprint,
): readonly FingerprintDifference[] {
  const objects = [...new Set([...Object.keys(built), ...Object.keys(now)])].sort();
  return objects.flatMap((object): readonly FingerprintDifference[] => {
    const before = built[object];
    const after = now[object];
    if (before === after) return [];
    const change = before === undefined ? 'added' : after === undefined ? 'removed' : 'changed';
    return [{ object, change }];
  });
}
