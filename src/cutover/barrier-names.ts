/** By what the barrier's triggers are found on a server. */

export const BARRIER_TRIGGER = 'understudy_barrier';
export const TRUNCATE_TRIGGER = 'understudy_barrier_truncate';

/** `orders\\000` for the argument `orders`; empty without one. */
export const SUBSET_SQL = `pg_catalog.encode(t.tgargs, 'escape')`;
