/** What else the source has to do, as far as Understudy's account may see it. */
import { run, type Session } from '../postgres/statement.js';

import type { StandbyLag } from './standbys.js';

export interface SourceLoad {
  /** Client sessions that run a statement at present, Understudy's own left out. */
  readonly active: number;
  /** Its standbys that are behind, as far as they are to be seen. */
  readonly standbys: readonly StandbyLag[];
}

/** Throws `source-…`. */
export async function readSourceLoad(session: Session): Promise<SourceLoad> {
  const { rows } = await run(
    session,
    `SELECT (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity a
        WHERE a.state = 'active' AND a.backend_type = 'client backend'
          AND a.application_name NOT LIKE 'understudy %') AS active,
      (SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
          'name', pg_catalog.concat_ws(' ', r.pid, r.application_name),
          'lagMs', pg_catalog.round(EXTRACT(epoch FROM r.replay_lag) * 1000)))
        FROM pg_catalog.pg_stat_replication r
        WHERE r.replay_lag IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s
          WHERE s.active_pid = r.pid AND s.slot_type = 'logical')) AS standbys`,
    { what: 'asking for the source’s load' },
  );
  const standbys = rows[0]?.['standbys'];
  return {
    active: Number(rows[0]?.['active'] ?? '0'),
    standbys: standbys == null ? [] : (JSON.parse(standbys) as StandbyLag[]),
  };
}
