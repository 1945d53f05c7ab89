/** The connections of a follower: one that reads, one that writes, and two that compare, made when first needed. */
import { parseLsn } from '../../core/position.js';
import { APPLY_SETTINGS } from '../postgres/apply.js';
import { closeSession, endOnAbort, openSession, run, textOf, type Session } from '../postgres/statement.js';
import type { FollowerSettings } from './follow-settings.js';
import { comparePair, type ComparePair } from './table-compare.js';

export interface FollowSessions {
  readonly read: Session;
  readonly write: Session;
  comparing(): Promise<ComparePair>;
  /** Of the source's log, as far as it may be asked; 0 where not. */
  position(): Promise<bigint>;
  readonly all: readonly Session[];
}

/** The work at hand may end in that time when the follower is stopped. */
const STOP_GRACE_MS = 1000;
/** Keys are looked up by their index, whatever the statistics say. */
const READ_SETTINGS = { enable_seqscan: 'off', enable_mergejoin: 'off', enable_hashjoin: 'off' };

/**
 * Opens them, once no former writer of this migration lives: its last transaction may still be under way long after its
 * process is gone. The server ends a connection whose peer is gone (see APPLY_SETTINGS).
 */
export async function openFollowSessions(
  settings: FollowerSettings,
  signal: AbortSignal,
): Promise<FollowSessions> {
  const { source, destination, migrationId } = settings;
  const all: Session[] = [];
  const kept = (session: Session): Session => {
    all.push(session);
    endOnAbort(session, signal, STOP_GRACE_MS);
    return session;
  };
  try {
    const read = kept(await openSession('source', source, 'follow', READ_SETTINGS));
    const write = kept(await openSession('destination', destination, 'follow', APPLY_SETTINGS));
    await run(
      write,
      {
        text: `SELECT pg_catalog.pg_advisory_lock(pg_catalog.hashtext('understudy follow'), pg_catalog.hashtext($1))`,
        values: [migrationId],
      },
      { what: 'waiting for the former writer to end' },
    );
    let pair: Promise<ComparePair> | undefined;
    return {
      read,
      write,
      all,
      comparing: () =>
        (pair ??= Promise.all([
          openSession('source', source, 'follow compare').then(kept),
          openSession('destination', destination, 'follow compare').then(kept),
        ]).then(([ours, theirs]) => comparePair(ours, theirs))),
      position: () => readPosition(read),
    };
  } catch (error) {
    await Promise.all(all.map((session) => closeSession(session)));
    throw error;
  }
}

export async function closeFollowSessions(sessions: FollowSessions): Promise<void> {
  await Promise.all(sessions.all.map((session) => closeSession(session)));
}

async function readPosition(source: Session): Promise<bigint> {
  const { rows } = await run(
    source,
    `SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
       ELSE pg_catalog.pg_current_wal_lsn() END AS position`,
    { what: 'reading the position of the log' },
  );
  return parseLsn(textOf(rows[0], 'position'));
}
