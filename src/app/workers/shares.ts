/** What one of several proxies may use of what was configured for all of them together. */
import type { ProxySettings, ReloadableSettings } from '../../proxy/settings.js';

/** Bounds that are looked up while clients are served. Client counts are not shared out: they are kept in one place. */
export function shareOfReloadable<T extends Partial<ReloadableSettings>>(settings: T, workers: number): T {
  const shared = { ...settings };
  for (const name of ['staleSessionsMax', 'maxHandshakes'] as const) {
    const all = settings[name];
    if (all !== undefined) Object.assign(shared, { [name]: Math.ceil(all / workers) });
  }
  return shared;
}

/** Never more in all than was configured, except that each has at least one connection. */
export function shareOf(settings: ProxySettings, workers: number): ProxySettings {
  const share = (all: number, least = 1): number => Math.max(least, Math.floor(all / workers));
  const bound = (all: number): number => (all === 0 ? 0 : share(all));
  return {
    ...shareOfReloadable(settings, workers),
    askConcurrency: share(settings.askConcurrency),
    warmConcurrency: share(settings.warmConcurrency),
    pool: {
      ...settings.pool,
      poolSizeMax: share(settings.pool.poolSizeMax),
      poolReserve: share(settings.pool.poolReserve, 0),
      poolConnectionsMax: bound(settings.pool.poolConnectionsMax),
      poolConnectionsPerUserMax: bound(settings.pool.poolConnectionsPerUserMax),
      poolWaitingMax: share(settings.pool.poolWaitingMax),
      sharedConnections: share(settings.pool.sharedConnections),
    },
  };
}
