/**
 * The clients that have been let in: sessions, and clients of a pool; their cancel keys and their places.
 *
 * States of a client: pooled → session (pinned) → gone; or session → gone. It keeps its id and its key throughout.
 *
 * Invariants: a client is in exactly one of both sets; its place and its key are given back once, when it has gone.
 */
import { UnderstudyError } from '../core/errors.js';
import type { Clock } from '../core/clock.js';
import type { Log } from '../core/log.js';
import type { Side } from '../core/ports.js';
import {
  encodeBackendKeyData,
  encodeParameterStatus,
  encodeReadyForQuery,
} from '../wire/postgres/messages.js';
import type { Backend } from './backend/backend.js';
import { CancelKeys } from './cancel-keys.js';
import type { AcceptedClient } from './login/client-handshake.js';
import type { Places } from './login/client-places.js';
import { wipeCredentials } from './login/credentials.js';
import type { Gate } from './gate.js';
import type { Leftover } from './pool/pool-context.js';
import { blocksMove, type PoolPin } from './pool/pool-settings.js';
import type { Pool } from './pool/pool.js';
import type { PooledClient } from './pool/pooled-client.js';
import type { Pools } from './pool/pools.js';
import type { ClientInfo } from './proxy-interface.js';
import { SHUTTING_DOWN } from './refusals.js';
import type { AdoptedClient, SessionContext } from './session/session-context.js';
import { Session, type SessionEvents } from './session/session.js';

export interface ClientsDeps {
  readonly places: Places;
  readonly firstId: number;
  readonly gate: () => Gate;
  readonly pools: () => Pools;
  readonly log: Log;
  readonly clock: Clock;
}

export class Clients {
  readonly #deps: ClientsDeps;
  readonly #sessions = new Set<Session>();
  /** Those of them that are passed through to other databases. */
  readonly #passed = new Set<Session>();
  readonly #keys = new CancelKeys<Session | PooledClient>();
  #nextId: number;
  #stopping = false;
  #accepted = 0;
  #closedBytesFrom = 0;
  #closedBytesTo = 0;
  #onEnd: () => void = () => undefined;
  readonly #events: SessionEvents = {
    onAtRest: (session) => this.#sessionAtRest(session),
    onClosed: (session) => this.#sessionClosed(session),
  };

  constructor(deps: ClientsDeps) {
    this.#deps = deps;
    this.#nextId = deps.firstId;
  }

  /** Let in so far. */
  get accepted(): number {
    return this.#accepted;
  }

  get #pooled(): ReadonlySet<PooledClient> {
    return this.#deps.pools().clients;
  }

  get size(): number {
    return this.#sessions.size + this.#pooled.size;
  }

  all(): readonly (Session | PooledClient)[] {
    return [...this.#sessions, ...this.#pooled];
  }

  /** The sessions a switch moves. */
  managedSessions(): Session[] {
    return [...this.#sessions].filter((session) => !this.#passed.has(session));
  }

  infos(): readonly ClientInfo[] {
    const sessions = [...this.#sessions].map((session) => ({
      ...session.info,
      database: session.accepted.database,
      passedThrough: this.#passed.has(session),
    }));
    const pooled = [...this.#pooled].map((client) => ({
      ...client.info,
      database: client.accepted.database,
      passedThrough: false,
    }));
    return [...sessions, ...pooled];
  }

  /** Of clients that have gone. */
  get closedBytes(): { readonly fromClients: number; readonly toClients: number } {
    return { fromClients: this.#closedBytesFrom, toClients: this.#closedBytesTo };
  }

  // ------------------------------------------------------------------------------------------------------ coming in

  /** A client that is let in with a connection of its own. */
  begin(client: AcceptedClient, backend: Backend, side: Side, context: SessionContext): void {
    const session = this.#begin(client, backend, side, context);
    if (session.phase !== 'closed') this.#deps.gate().opened(session);
  }

  /** As `begin`, to a database that no gate stands in front of. */
  beginPassedThrough(client: AcceptedClient, backend: Backend, context: SessionContext): void {
    const session = this.#begin(client, backend, 'source', context);
    if (session.phase !== 'closed') this.#passed.add(session);
  }

  #begin(client: AcceptedClient, backend: Backend, side: Side, context: SessionContext): Session {
    const session = new Session(this.#nextId++, client, backend, side, context, this.#events);
    const { processId, secret } = this.#keys.issue(session, client.protocolMinor);
    this.#sessions.add(session);
    this.#accepted += 1;
    const parameters = [...backend.parameters].map(([name, value]) => encodeParameterStatus(name, value));
    session.start(
      Buffer.concat([
        client.greeting,
        backend.notices,
        ...parameters,
        encodeBackendKeyData(processId, secret),
        encodeReadyForQuery('I'),
      ]),
    );
    return session;
  }

  beginPooled(accepted: AcceptedClient, pool: Pool): void {
    this.#accepted += 1;
    const id = this.#nextId++;
    const client = this.#deps.pools().accept(id, accepted, pool);
    const { processId, secret } = this.#keys.issue(client, accepted.protocolMinor);
    if (accepted.greeting.length > 0) accepted.socket.write(accepted.greeting);
    client.start(encodeBackendKeyData(processId, secret));
  }

  /** A pooled client keeps its connection from now on: it goes on as a session. */
  pinned(
    client: PooledClient,
    backend: Backend,
    pin: PoolPin,
    leftover: Leftover,
    onMoved: AdoptedClient['onMoved'],
    context: SessionContext,
  ): void {
    const accepted = { ...client.accepted, leftover: leftover.bytes };
    const session = new Session(client.id, accepted, backend, client.pool.side, context, this.#events);
    this.#deps.log.debug(
      { session: client.id, reason: pin.reason, detail: pin.detail },
      'a pooled client was pinned',
    );
    const { messages } = client;
    session.adopt({
      prepared: [...messages.names].map(([name, { body, textBytes, decision }]) => ({
        name,
        text: body.subarray(0, textBytes),
        flags: decision.flags,
      })),
      unnamed: messages.unnamed,
      settingNames: messages.settingNames,
      recordedBytes: leftover.recorded,
      onMoved,
      pins: blocksMove(pin.reason) ? [{ reason: pin.reason, detail: pin.detail }] : [],
    });
    this.#keys.hand(client, session);
    this.#sessions.add(session);
    session.start(Buffer.alloc(0));
    if (session.phase === 'closed') return;
    const gate = this.#deps.gate();
    if (gate.state === 'open' && !this.#stopping) gate.opened(session);
    else session.hold();
  }

  // ------------------------------------------------------------------------------------------------ what they report

  #sessionClosed(session: Session): void {
    this.#sessions.delete(session);
    this.#passed.delete(session);
    this.#gone(session);
    this.#deps.gate().closed(session);
    this.#onEnd();
  }

  pooledClosed(client: PooledClient): void {
    this.#gone(client);
    this.#onEnd();
  }

  #gone(client: Session | PooledClient): void {
    this.#keys.release(client);
    wipeCredentials(client.accepted.credentials);
    this.#deps.places.free(client.accepted);
    const { bytesFromClient, bytesToClient } = client.info;
    this.#closedBytesFrom += bytesFromClient;
    this.#closedBytesTo += bytesToClient;
  }

  #sessionAtRest(session: Session): void {
    if (this.#stopping) session.terminate(SHUTTING_DOWN.sqlState, SHUTTING_DOWN.message);
    else this.#deps.gate().atRest(session);
  }

  pooledAtRest(client: PooledClient): void {
    if (this.#stopping) client.terminate(SHUTTING_DOWN.sqlState, SHUTTING_DOWN.message);
  }

  /** A wrong key is met with silence. Returns whether it is a key of a client here. */
  cancel(processId: number, secret: Buffer): boolean {
    const client = this.#keys.find(processId, secret);
    client?.cancelStatement();
    return client !== undefined;
  }

  // ---------------------------------------------------------------------------------------------------------- the end

  /** Closes idle clients, and busy ones as they come to rest. Resolves when none is left, or the time is up. */
  async leave(withinMs: number): Promise<void> {
    this.#stopping = true;
    for (const client of this.all()) {
      if (client.idle) client.terminate(SHUTTING_DOWN.sqlState, SHUTTING_DOWN.message);
      else client.hold();
    }
    if (this.size === 0) return;
    const over = new AbortController();
    const timeUp = this.#deps.clock.sleep(withinMs, over.signal).catch(() => undefined);
    const ended = new Promise<void>((resolve) => {
      this.#onEnd = () => {
        if (this.size === 0) resolve();
      };
    });
    await Promise.race([ended, timeUp]);
    over.abort(new UnderstudyError('cancelled', 'all clients have left'));
  }

  /** Closes those that are left; what they run is cancelled. */
  end(cancelBackend: (backend: Backend) => void): void {
    for (const client of this.all()) {
      if (client instanceof Session) cancelBackend(client.backend);
      else client.cancelStatement();
      client.terminate(SHUTTING_DOWN.sqlState, SHUTTING_DOWN.message);
    }
  }
}
