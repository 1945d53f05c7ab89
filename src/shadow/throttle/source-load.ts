/** What else the source has to do, as far as Understudy's account may see it. */
import { run, type Session } from '../postgres/statement.js';

export interface SourceLoad {
  /** Client sessions that run a statement at present, Understudy's own left out. */
  readonly active: number;
  /** The farthest any of its standbys is behind; null where it has none, or they are not to be seen. */
  readonly standbyLagMs: number | null;
}

/** Throws `source-…`. */
export async function readSourceLoad(session: Session): Promise<SourceLoad> {
  const { rows } = await run(
    session,
    `SELECT (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity a
        WHERE a.state = 'active' AND a.backend_type = 'client backend'
          AND a.application_name NOT LIKE 'understudy %') AS active,
      (SELECT pg_catalog.round(EXTRACT(epoch FROM pg_catalog.max(r.replay_lag)) * 1000)
        FROM pg_catalog.pg_stat_replication r
        WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s
          WHERE s.active_pid = r.pid AND s.slot_type = 'logical')) AS standby_lag_ms`,
    { what: 'asking for the source’s load' },
  );
  const lag = rows[0]?.['standby_lag_ms'];
  return { active: Number(rows[0]?.['active'] ?? '0'), standbyLagMs: lag == null ? null : Number(lag) };
}
