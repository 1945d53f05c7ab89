/**
 * Tells other processes that this proxy lives: a row in the journal and a session advisory lock, held by a connection
 * of its own. The lock dies with the process at once, and with its host within seconds (TCP keepalives).
 *
 * Invariant: who has registered looks for a fence after that (`onRegistered`), and who switches looks for others behind its
 * fence. So no switch goes unseen by a proxy that serves, whichever of the two comes first.
 *
 * States: unregistered → registered ⇄ lost (the connection broke; it is opened again with backoff) → closed.
 */
import { hostname } from 'node:os';
import type { Clock } from '../core/clock.js';
import type { Log } from '../core/log.js';
import { quoteLiteral } from '../core/postgres.js';
import type { Connections, Session } from './session.js';

/** First half of the advisory lock's key ("unds"); the second is the proxy's number. */
const LOCK_CLASS = 0x756e6473;
const BACKOFF_MIN_MS = 100;
const BACKOFF_MAX_MS = 5_000;

/** The server gives a silent peer up after some 11 s. */
const KEEPALIVE = {
  tcp_keepalives_idle: '5',
  tcp_keepalives_interval: '2',
  tcp_keepalives_count: '3',
};

export interface RegistrationDeps {
  readonly proxyId: string;
  readonly connections: Connections;
  readonly clock: Clock;
  readonly log: Log;
  readonly answerTimeoutMs: number;
  /** Called whenever the journal is reachable again after it was not. */
  readonly onReturn: () => Promise<void>;
  /** Called behind each registration, before it is told of. */
  readonly onRegistered?: () => void;
}

export class Registration {
  readonly #deps: RegistrationDeps;
  readonly #closing = new AbortController();
  #session: Session | undefined;
  #registering: Promise<void> | undefined;
  #watching = false;

  constructor(deps: RegistrationDeps) {
    this.#deps = deps;
  }

  /** Throws `destination-unreachable`. The journal's tables must exist. */
  register(): Promise<void> {
    if (this.#session !== undefined && !this.#session.dead) return Promise.resolve();
    this.#registering ??= this.#register().finally(() => (this.#registering = undefined));
    return this.#registering;
  }

  async #register(): Promise<void> {
    const { proxyId, connections, answerTimeoutMs } = this.#deps;
    const session = await connections.open('destination', 'proxy', { settings: KEEPALIVE, answerTimeoutMs });
    try {
      // A new row, and so a new lock, each time: nothing waits for the end of this process's former connection. The
      // transaction's lock keeps a row between its insert and its lock from being taken for a dead proxy's.
      await session.batch([
        'BEGIN',
        `SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('understudy'))`,
        `DELETE FROM understudy.proxy WHERE id = ${quoteLiteral(proxyId)} OR NOT ${LIVE_SQL}`,
        `INSERT INTO understudy.proxy (id, host, process)
           VALUES (${quoteLiteral(proxyId)}, ${quoteLiteral(hostname())}, ${process.pid})`,
        `SELECT pg_catalog.pg_advisory_lock(${LOCK_CLASS}, lock) FROM understudy.proxy
          WHERE id = ${quoteLiteral(proxyId)}`,
        'COMMIT',
      ]);
    } catch (error) {
      session.destroy();
      throw error;
    }
    this.#session = session;
    this.#deps.onRegistered?.();
    session.client.once('end', () => this.#onLost());
    if (session.dead) this.#onLost();
  }

  #onLost(): void {
    if (this.#closing.signal.aborted || this.#watching) return;
    this.#watching = true;
    this.#deps.log.warn({}, 'the journal’s connection is lost; it is opened again');
    void this.#reopen().finally(() => (this.#watching = false));
  }

  async #reopen(): Promise<void> {
    const { clock, log, onReturn } = this.#deps;
    for (let waitMs = BACKOFF_MIN_MS; ; waitMs = Math.min(waitMs * 2, BACKOFF_MAX_MS)) {
      try {
        await clock.sleep(waitMs, this.#closing.signal);
      } catch {
        return;
      }
      try {
        await this.register();
        await onReturn();
        log.info({}, 'the journal is reachable again');
        return;
      } catch (error) {
        log.debug(
          { reason: error instanceof Error ? error.message : String(error) },
          'journal still unreachable',
        );
      }
    }
  }

  async close(): Promise<void> {
    this.#closing.abort(new Error('closed'));
    await this.#session?.end();
  }

  /** As a dying process: nothing is said to the server. */
  destroy(): void {
    this.#closing.abort(new Error('destroyed'));
    this.#session?.destroy();
  }
}

/** Whether the proxy of a row of understudy.proxy holds its lock. */
const LIVE_SQL = `EXISTS (
  SELECT FROM pg_catalog.pg_locks l
   WHERE l.locktype = 'advisory' AND l.granted AND l.classid = ${LOCK_CLASS} AND l.objid::bigint = proxy.lock AND l.objsubid = 2
     AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))`;

export interface LiveProxy {
  readonly id: string;
  readonly host: string;
  readonly process: string;
}

/** Proxies other than `proxyId` that hold their lock at this moment. */
export async function readOtherProxies(session: Session, proxyId: string): Promise<readonly LiveProxy[]> {
  const found = await session.run(
    `SELECT id, host, process FROM understudy.proxy WHERE id <> $1 AND ${LIVE_SQL} ORDER BY id`,
    [proxyId],
  );
  return found.rows.map((row) => ({
    id: row['id'] ?? '',
    host: row['host'] ?? '',
    process: row['process'] ?? '',
  }));
}
