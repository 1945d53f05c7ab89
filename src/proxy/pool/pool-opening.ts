/**
 * How a pool comes by connections: each counts against the bound on all pools from before it is opened until its socket has
 * closed, and as in use until the pool says otherwise.
 *
 * They are opened with a copy of what the client that came last has proven: all clients of a pool have logged in as the
 * same user.
 */
import type net from 'node:net';
import { timingSafeEqual } from 'node:crypto';
import { openBackend, type Backend, type BackendEndpoint } from '../backend/backend.js';
import type { Side } from '../../core/ports.js';
import { wipeCredentials, type BackendCredentials } from '../login/credentials.js';
import type { ConnectionBound, Place } from './connection-bound.js';
import { PooledBackend } from './pooled-backend.js';
import type { PoolContext } from './pool-context.js';
import type { PoolMode } from './pool-settings.js';

export interface PoolKey {
  readonly user: string;
  /** Start-up parameters, as the client sent them. */
  readonly parameters: ReadonlyMap<string, string>;
  /** As agreed with its clients. */
  readonly protocolMinor: number;
  readonly mode: PoolMode;
}

export interface PoolTarget {
  readonly side: Side;
  readonly endpoint: BackendEndpoint;
  readonly database: string;
}

export interface PoolOpeningDeps {
  readonly key: PoolKey;
  readonly target: PoolTarget;
  readonly bound: ConnectionBound;
  readonly context: PoolContext;
  /** It counts as in use. */
  readonly onOpened: (backend: PooledBackend) => void;
  /** It died while idle. */
  readonly onLost: (backend: PooledBackend) => void;
}

export class PoolOpening {
  readonly #deps: PoolOpeningDeps;
  #credentials: BackendCredentials = { kind: 'none' };
  readonly #places = new WeakMap<Backend, Place>();
  /** Connections that have a place, open or being opened. */
  counted = 0;
  /** Connections being opened. */
  opening = 0;
  /** Clients that log in and wait for a connection. */
  entering = 0;

  constructor(deps: PoolOpeningDeps) {
    this.#deps = deps;
  }

  get credentials(): BackendCredentials {
    return this.#credentials;
  }

  /** Opens further connections with a copy of these. */
  use(credentials: BackendCredentials): void {
    // The one before may be in use for a connection being opened: it is left to the runtime.
    this.#credentials = copyOf(credentials);
  }

  wipe(): void {
    wipeCredentials(this.#credentials);
  }

  /** Whether a client with these needs no connection of its own to be believed. */
  proves(credentials: BackendCredentials): boolean {
    if (credentials.kind !== 'given-password' || credentials.proven) return true;
    const ours = this.#credentials;
    if (
      ours.kind !== 'given-password' ||
      !ours.proven ||
      ours.password.length !== credentials.password.length
    ) {
      return false;
    }
    return timingSafeEqual(ours.password, credentials.password);
  }

  /** A new connection as soon as the bound on all pools has room for it; counts as in use. */
  async openInTurn(credentials: BackendCredentials): Promise<PooledBackend> {
    const { bounds, clock } = this.#deps.context;
    this.entering += 1;
    try {
      const place = await this.#deps.bound.wait(this.#deps.key.user, {
        nowMs: clock.monotonicMs(),
        timeoutMs: bounds.poolWaitTimeoutMs,
        waitingMax: bounds.poolWaitingMax,
      });
      return await this.open(credentials, place);
    } finally {
      this.entering -= 1;
    }
  }

  /** A new connection beside those that serve, for a switch; counts as in use. */
  openBeyond(): Promise<PooledBackend> {
    return this.open(this.#credentials, this.#deps.bound.take(this.#deps.key.user, 'beyond'));
  }

  /** A new connection, which counts as in use, in this place; null: in none. */
  async open(credentials: BackendCredentials, place: Place | null): Promise<PooledBackend> {
    this.opening += 1;
    try {
      const { settings } = this.#deps.context;
      const backend = await this.#opened(
        place,
        openBackend(
          this.#deps.target.endpoint,
          { ...this.#deps.key, database: this.#deps.target.database },
          credentials,
          {
            connectTimeoutMs: settings.connectTimeoutMs,
          },
        ),
      );
      const pooled = new PooledBackend(backend, {
        frameBytesMax: settings.frameBytesMax,
        replyBytesMax: settings.stateBytesMax,
        preparedMax: this.#deps.context.bounds.preparedStatementsMax,
        connectTimeoutMs: settings.connectTimeoutMs,
        parameterSets: this.#deps.context.parameterSets,
        nowMs: this.#deps.context.clock.monotonicMs(),
        onLost: this.#deps.onLost,
      });
      this.#deps.onOpened(pooled);
      return pooled;
    } finally {
      this.opening -= 1;
    }
  }

  /** The place is the connection's from now on. */
  async #opened(place: Place | null, opening: Promise<Backend>): Promise<Backend> {
    if (place === null) return await opening;
    this.counted += 1;
    try {
      const backend = await opening;
      this.#places.set(backend, place);
      place.follow(backend.socket, () => (this.counted -= 1));
      return backend;
    } catch (error) {
      this.counted -= 1;
      place.give();
      throw error;
    }
  }

  /** A client that was pinned to a connection of the other side has moved to this one. */
  count(socket: net.Socket): void {
    const place = this.#deps.bound.take(this.#deps.key.user, 'beyond');
    if (place === null) return;
    this.counted += 1;
    place.follow(socket, () => (this.counted -= 1));
  }

  /**
   * A connection whose transactions can't write, whatever a statement may try. null: there is no room for one, which
   * doesn't matter `beyond` the bound.
   */
  openReadOnly(beyond: boolean): Promise<Backend> | null {
    const place = this.#deps.bound.take(this.#deps.key.user, beyond ? 'beyond' : 'shared');
    if (place === null) return null;
    const parameters = new Map([...this.#deps.key.parameters, ['default_transaction_read_only', 'on']]);
    return this.#opened(
      place,
      openBackend(
        this.#deps.target.endpoint,
        { ...this.#deps.key, parameters, database: this.#deps.target.database },
        this.#credentials,
        { connectTimeoutMs: this.#deps.context.settings.connectTimeoutMs },
      ),
    );
  }

  /** It makes room for a claimant: call before it is closed. */
  leave(backend: Backend): void {
    this.#places.get(backend)?.leave();
  }
}

/** The client's own are wiped when it leaves. */
function copyOf(credentials: BackendCredentials): BackendCredentials {
  switch (credentials.kind) {
    case 'given-password':
      return { ...credentials, password: Buffer.from(credentials.password), proven: true };
    case 'scram-keys':
      return { ...credentials, clientKey: Buffer.from(credentials.clientKey) };
    case 'md5':
    case 'password':
    case 'none':
      return credentials;
  }
}
