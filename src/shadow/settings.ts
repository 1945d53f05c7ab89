/** What the shadow can be told; every wait, size and queue has its bound here. */
import type { DatabaseEndpoint, ShadowMethod, SubsetRules } from '../core/ports.js';
import type { Format } from '../core/format-ports.js';
import { CONFLICT_DEFAULTS, type ConflictSettings } from './conflicts/rule.js';
import { THROTTLE_DEFAULTS, type ThrottleSettings } from './throttle/settings.js';

export interface ShadowSettings {
  readonly source: DatabaseEndpoint;
  readonly destination: DatabaseEndpoint;
  /** Names publications and slots: lower-case letters, digits and underscores, at most 40. */
  readonly migrationId: string;
  /** Create the source's roles on the destination where they are missing. */
  readonly copyRoles: boolean;
  /** Rows per chunk of the copy, at most. */
  readonly chunkRows: number;
  /** Bytes a chunk aims at; wide rows make chunks of fewer rows. */
  readonly chunkBytes: number;
  /** Tables read side by side. */
  readonly copyConcurrency: number;
  /** Which row stands where the destination was written to past its guard. */
  readonly conflicts: ConflictSettings;
  /** What the first copy must not do to others. */
  readonly throttle: ThrottleSettings;
  /** A change waits at most that long for others to be written with it. */
  readonly flushIntervalMs: number;
  /** Changes written in one transaction, unless the source's own is larger. */
  readonly flushChangesMax: number;
  /** Memory for changes received and not yet written, per stream; past it the socket is not read. */
  readonly streamBytesMax: number;
  /** How often the server is told the position. */
  readonly statusIntervalMs: number;
  /** How often the head of the log is asked for, which lag is measured against. */
  readonly headPollIntervalMs: number;
  /** How often both catalogs are compared with what the shadow was built from. */
  readonly fingerprintIntervalMs: number;
  /** Pauses between attempts after a retryable error: exponential, with jitter. */
  readonly retryFirstMs: number;
  readonly retryMaxMs: number;
  /** Log that a slot may keep on either server before the shadow is dropped; 0 is no bound but the disk. */
  readonly logBudgetBytes: number;
  /** How often it is measured. */
  readonly logPollIntervalMs: number;
  /** Keys remembered as changed since the last clean comparison. */
  readonly recentKeysMax: number;
  /** How often some of them are compared and forgotten. */
  readonly trimIntervalMs: number;
  /** How the shadow learns of changes; auto takes the best that the source allows. */
  readonly method: ShadowMethod | 'auto';
  /** Pause between two polls of the source's tables. */
  readonly pollIntervalMs: number;
  /** By `mirror` and `poll`, a table is compared so often although nothing is known against it. */
  readonly compareIntervalMs: number;
  /** `schema.table` → its timestamp column, by which `poll` asks it instead of by xmin. */
  readonly versionColumns: Readonly<Record<string, string>> | undefined;
  /** The destination's form of the source's tables; only by `log`. */
  readonly format: Format | undefined;
  /** Empty: the whole database is one subset. Only by `log`. */
  readonly subsets: readonly SubsetRules[];
}

export type ShadowOptions = Pick<ShadowSettings, 'source' | 'destination' | 'migrationId'> &
  Partial<ShadowSettings>;

export const SHADOW_DEFAULTS: Omit<ShadowSettings, 'source' | 'destination' | 'migrationId'> = {
  copyRoles: true,
  chunkRows: 100_000,
  chunkBytes: 8 * 1024 * 1024,
  copyConcurrency: 2,
  conflicts: CONFLICT_DEFAULTS,
  throttle: THROTTLE_DEFAULTS,
  flushIntervalMs: 20,
  flushChangesMax: 20_000,
  streamBytesMax: 8 * 1024 * 1024,
  statusIntervalMs: 1000,
  headPollIntervalMs: 250,
  fingerprintIntervalMs: 10_000,
  retryFirstMs: 100,
  retryMaxMs: 10_000,
  logBudgetBytes: 16 * 1024 ** 3,
  logPollIntervalMs: 2000,
  recentKeysMax: 50_000,
  trimIntervalMs: 300,
  method: 'auto',
  pollIntervalMs: 1000,
  compareIntervalMs: 600_000,
  versionColumns: undefined,
  format: undefined,
  subsets: [],
};
