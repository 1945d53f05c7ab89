/**
 * The settings of a pooled client's session, carried from connection to connection, as one comparable thing.
 *
 * They are never guessed from the text of a SET: after a statement that may have changed them, the connection is asked
 * (session-state.ts). A custom setting that reads as empty counts as unset: PostgreSQL can't take back that its name
 * was ever used on a connection.
 */
import { UnderstudyError } from '../../core/errors.js';
import { pinsOf, type Pin, type SessionState } from '../session/session-state.js';
import { replayState, type Askable } from '../backend/state-replay.js';
import { SERVER_NAME_PREFIX } from './definitions.js';
import type { PoolPin } from './pool-settings.js';

export interface ClientState {
  /** Equal for equal states; empty for what a connection starts with. */
  readonly signature: string;
  /** Null: what a connection starts with. Never holds prepared statements or what pins. */
  readonly state: SessionState | null;
}

export const DEFAULT_STATE: ClientState = { signature: '', state: null };

/** What `state`, read from a connection, means for its client, whose own login role is `user`. */
export function clientState(state: SessionState, user: string): ClientState {
  const custom = new Map([...state.custom].filter(([, value]) => value !== ''));
  const own = state.sessionAuthorization === Buffer.from(user, 'utf8').toString('latin1');
  if (own && state.role === 'none' && state.settings.size === 0 && custom.size === 0) return DEFAULT_STATE;
  const signature = JSON.stringify([
    state.sessionAuthorization,
    state.role,
    [...state.settings].toSorted(byName),
    [...custom].toSorted(byName),
  ]);
  return {
    signature,
    state: {
      ...state,
      custom,
      prepared: new Map(),
      listening: [],
      holdCursors: [],
      advisoryLocks: [],
      temporary: [],
      temporarySchema: false,
    },
  };
}

function byName([a]: readonly [string, string], [b]: readonly [string, string]): number {
  return a < b ? -1 : 1;
}

/** What of a state read from a connection keeps its client there. */
export function poolPinOf(state: SessionState): PoolPin | null {
  for (const pin of pinsOf(withoutPoolNames(state))) return pin;
  for (const statement of state.prepared.values()) {
    if (statement.fromSql)
      return { reason: 'prepared-by-sql', detail: `prepared statement ${statement.name}` };
  }
  const [channel] = state.listening;
  return channel === undefined ? null : { reason: 'listening', detail: `channel ${channel}` };
}

function withoutPoolNames(state: SessionState): SessionState {
  const prepared = [...state.prepared].filter(([name]) => !name.startsWith(SERVER_NAME_PREFIX));
  return { ...state, prepared: new Map(prepared) };
}

const RESET = 'SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL';

/**
 * Brings a connection that holds `from` to hold `to`. Returns what it refused, by name; it is of no use then.
 * Rejects where the connection is lost.
 */
export async function applyState(connection: Askable, from: ClientState, to: ClientState): Promise<Pin[]> {
  if (from.signature === to.signature) return [];
  if (from.state !== null) {
    const reply = await connection.query(RESET);
    if (reply.sqlState !== null) {
      throw new UnderstudyError('backend-refused', `a connection could not be reset: ${reply.sqlState}`);
    }
  }
  return to.state === null ? [] : await replayState(connection, to.state);
}
