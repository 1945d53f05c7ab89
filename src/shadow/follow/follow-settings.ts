import type { ShadowSettings } from '../settings.js';

/** What a follower is told; see `../settings.ts`. */
export type FollowerSettings = Pick<
  ShadowSettings,
  | 'source'
  | 'destination'
  | 'migrationId'
  | 'chunkRows'
  | 'chunkBytes'
  | 'retryFirstMs'
  | 'retryMaxMs'
  | 'pollIntervalMs'
  | 'compareIntervalMs'
  | 'versionColumns'
>;
