/** What the copy must not do to others; 0 is no bound. */
export interface ThrottleSettings {
  /** The application's 99th percentile that is to be kept; `auto` is relative to what it is without a copy. */
  readonly latencyP99Ms: 'auto' | 'off' | number;
  /** `auto`: as a factor of the baseline. */
  readonly latencyFactor: number;
  /** `auto`: a percentile below that is good, whatever the baseline. */
  readonly latencyFloorMs: number;
  /** The longest that a standby of the source may be behind. */
  readonly standbyLagMs: number;
  /** The longest that the shadow itself may be behind. */
  readonly shadowLagMs: number;
  /** Client sessions that run a statement on the source at the same time. */
  readonly activeMax: number;
}

export const THROTTLE_DEFAULTS: ThrottleSettings = {
  latencyP99Ms: 'auto',
  latencyFactor: 1.2,
  latencyFloorMs: 10,
  standbyLagMs: 10_000,
  shadowLagMs: 30_000,
  activeMax: 0,
};
