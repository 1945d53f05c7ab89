/** What happens when a pooled client's transaction is over and something may have stayed behind on its connection. */
import { UnderstudyError } from '../../core/errors.js';
import { encodeRawClose } from '../../wire/postgres/raw-text.js';
import { FRONTEND } from '../../wire/postgres/messages.js';
import type { Backend } from '../backend/backend.js';
import { detailQuery, readState, stateQuery } from '../session/session-state.js';
import { clientState, poolPinOf, type ClientState } from './client-state.js';
import { frameOf } from './client-messages.js';
import { SHORT_SHARE } from './decisions.js';
import type { PooledBackend } from './pooled-backend.js';
import type { PooledClient } from './pooled-client.js';
import type { PoolContext } from './pool-context.js';
import type { PoolPin } from './pool-settings.js';

/**
 * Asks a connection what its client has left in it. A late cancel may hit the first question: it is asked again.
 * Rejects where the connection is lost or does not answer.
 */
async function askState(
  backend: PooledBackend,
  names: Iterable<string>,
  user: string,
): Promise<{ readonly state: ClientState; readonly pin: PoolPin | null }> {
  while (backend.cancelling !== null) await backend.cancelling;
  const question = stateQuery(names);
  let first = await backend.query(question);
  if (first.sqlState === QUERY_CANCELED) first = await backend.query(question);
  if (first.sqlState !== null) throw unreadable(first.sqlState);
  let state = readState(first.rows);
  const details = detailQuery(state);
  if (details !== null) {
    const second = await backend.query(details);
    if (second.sqlState !== null) throw unreadable(second.sqlState);
    state = readState([...first.rows, ...second.rows]);
  }
  return { state: clientState(state, user), pin: poolPinOf(state) };
}

const QUERY_CANCELED = '57014';

function unreadable(sqlState: string): UnderstudyError {
  return new UnderstudyError('backend-refused', `the question was answered with ${sqlState}`);
}

/** Remembers what the client has set. Returns what it has left that can't be carried. Rejects as {@link askState}. */
export async function carryOver(
  client: PooledClient,
  backend: PooledBackend,
  context: PoolContext,
): Promise<PoolPin | null> {
  const { messages, accepted } = client;
  const names = new Set([...messages.settingNames, ...context.customSettings()]);
  const { pin, state } = await askState(backend, names, accepted.user);
  client.state = state;
  backend.held = state;
  messages.dirty = false;
  return pin;
}

/** A single read that might be shared tells how long its text takes. */
export function timeRead(
  { messages, pool }: PooledClient,
  { bounds, clock }: PoolContext,
  linkedAtMs: number,
): void {
  const { runs, lastRun } = messages;
  if (runs !== 1 || lastRun === null || lastRun.shape === null || !pool.shares) return;
  lastRun.ranAlone(clock.monotonicMs() - linkedAtMs, bounds.sharedReadBoundMs * SHORT_SHARE);
}

/**
 * Makes a connection what it would be had its client used it alone: the pool's prepared statements go, the client's
 * own come under the client's names. Resolves with the connection, which is the caller's then.
 */
export async function pinnedSession(client: PooledClient, backend: PooledBackend): Promise<Backend> {
  while (backend.cancelling !== null) await backend.cancelling;
  const { messages } = client;
  const closed = backend.prepared
    .serverNames()
    .map((name) => encodeRawClose(name.toString('latin1', 0, name.length - 1)));
  const groups: Buffer[][] = closed.length === 0 ? [] : [closed];
  for (const [name, definition] of messages.names) {
    groups.push([frameOf(FRONTEND.parse, [Buffer.from(`${name}\0`, 'latin1'), definition.body])]);
  }
  if (messages.unnamed !== null) groups.push([frameOf(FRONTEND.parse, [messages.unnamed])]);
  // What can't be prepared any more its client learns of when it uses it.
  await backend.extended(groups);
  // A notification may have begun behind the last answer.
  while (!backend.betweenFrames) await backend.query('');
  return backend.take();
}
