/**
 * What open transactions have touched, session by session, and what is ready to be looked at.
 *
 *   statement ──► session's own ──(answered outside of a transaction)──► ready ──take──► the shadow
 *
 * A row is read only after its transaction's end was answered: PostgreSQL answers a COMMIT once it is visible. A rolled
 * back one is read for nothing. What a session has that is heard of no more (a COMMIT whose answer was lost, a client
 * that sleeps) is given out again and again while it is remembered; once it is forgotten, its tables are compared.
 *
 * Bounds: keys per session and in all; past them the table counts instead. Sessions; past them everything is `lost`.
 */
import type { TouchedRows } from '../../core/ports.js';
import type { Touch } from './touch.js';

interface Collected {
  readonly keys: Map<string, Map<string, readonly string[]>>;
  count: number;
  readonly rows: Set<string>;
  readonly compare: Set<string>;
  unknown: boolean;
}

interface SessionPending extends Collected {
  heardMs: number;
  givenMs: number;
}

const SESSIONS_MAX = 20_000;
const SESSION_KEYS_MAX = 5_000;
const READY_KEYS_MAX = 100_000;
/** A session that is silent for so long may be gone. */
const SILENT_MS = 2_000;
/** By then its transaction was ended, or will be found by comparing. */
const FORGOTTEN_MS = 600_000;

const collected = (): Collected => ({
  keys: new Map(),
  count: 0,
  rows: new Set(),
  compare: new Set(),
  unknown: false,
});

export class PendingTouches {
  readonly #sessions = new Map<number | string, SessionPending>();
  /** Of prepared transactions, which anybody may commit. */
  readonly #prepared = collected();
  #ready = collected();
  #lost: string | null = null;

  /** `open`: a transaction is still open after the statement, or that is not known yet. */
  add(session: number | string, touch: Touch | null, open: boolean, nowMs: number): void {
    let pending = this.#sessions.get(session);
    if (pending === undefined && touch === null) return;
    if (pending === undefined) {
      if (!open && touch !== null) {
        mergeTouch(this.#ready, touch, READY_KEYS_MAX);
        return;
      }
      if (this.#sessions.size >= SESSIONS_MAX) {
        this.lose('too many transactions were open at once');
        return;
      }
      pending = { ...collected(), heardMs: nowMs, givenMs: nowMs };
      this.#sessions.set(session, pending);
    }
    pending.heardMs = nowMs;
    if (touch !== null) {
      mergeTouch(pending, touch, SESSION_KEYS_MAX);
      // A pipeline's statements are told apart from its transaction's end only later.
      pending.unknown ||= touch.unknown;
    }
    if (open) return;
    this.#sessions.delete(session);
    merge(this.#ready, pending, READY_KEYS_MAX);
  }

  /** PREPARE TRANSACTION: the session's part is now anybody's. */
  prepared(session: number | string): void {
    const pending = this.#sessions.get(session);
    if (pending === undefined) return;
    this.#sessions.delete(session);
    merge(this.#prepared, pending, READY_KEYS_MAX);
  }

  /** COMMIT PREPARED: it isn't known which. */
  preparedEnded(): void {
    merge(this.#ready, this.#prepared, READY_KEYS_MAX);
  }

  lose(why: string): void {
    this.#lost ??= why;
  }

  /** What there is to look at by now; null where there is nothing. */
  take(nowMs: number): TouchedRows | null {
    this.#giveSilent(nowMs);
    const { keys, rows, compare, unknown } = this.#ready;
    const lost = this.#lost;
    if (keys.size === 0 && rows.size === 0 && compare.size === 0 && !unknown && lost === null) return null;
    this.#ready = collected();
    this.#lost = null;
    return {
      keys: [...keys].map(([table, named]) => ({ table, keys: [...named.values()] })),
      rows: [...rows],
      compare: [...compare],
      unknown,
      lost,
    };
  }

  #giveSilent(nowMs: number): void {
    for (const [session, pending] of this.#sessions) {
      if (nowMs - pending.heardMs < SILENT_MS || nowMs - pending.givenMs < SILENT_MS) continue;
      pending.givenMs = nowMs;
      merge(this.#ready, pending, READY_KEYS_MAX);
      if (nowMs - pending.heardMs < FORGOTTEN_MS) continue;
      this.#sessions.delete(session);
      for (const table of [...pending.keys.keys(), ...pending.rows]) {
        this.#ready.rows.add(table);
        this.#ready.compare.add(table);
      }
    }
  }
}

function mergeTouch(into: Collected, touch: Touch, keysMax: number): void {
  for (const [table, keys] of touch.keys) addKeys(into, table, keys, keysMax);
  for (const table of touch.rows) into.rows.add(table);
  for (const table of touch.compare) into.compare.add(table);
  into.unknown ||= touch.unknown;
}

function merge(into: Collected, from: Collected, keysMax: number): void {
  for (const [table, keys] of from.keys) addKeys(into, table, [...keys.values()], keysMax);
  for (const table of from.rows) into.rows.add(table);
  for (const table of from.compare) into.compare.add(table);
  into.unknown ||= from.unknown;
}

function addKeys(
  into: Collected,
  table: string,
  keys: readonly (readonly string[])[],
  keysMax: number,
): void {
  if (into.count + keys.length > keysMax) {
    into.rows.add(table);
    into.compare.add(table);
    return;
  }
  let named = into.keys.get(table);
  if (named === undefined) {
    named = new Map();
    into.keys.set(table, named);
  }
  const before = named.size;
  for (const key of keys) named.set(JSON.stringify(key), key);
  into.count += named.size - before;
}
