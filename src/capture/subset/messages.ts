/** What the reach thread posts of its own accord; apart from the service, which is not loaded where it does not run. */
/** Posted whenever what was said before may no longer hold. */
export const CATALOGS_CHANGED = { catalogs: 'changed' } as const;
