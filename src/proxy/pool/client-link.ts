/**
 * A pooled client as the connection sees it that it is linked to: where the server's answers go, and in which words.
 *
 * One for the client's whole life; `to` points it at the connection that it has now.
 */
import type { ErrorResponseFields } from '../../wire/postgres/messages.js';
import type { SessionBinaryTypes } from '../session/binary-types.js';
import type { ResponseTracker } from '../session/response-tracker.js';
import type { StatementLog } from '../session/statement-log.js';
import type { ClientMessages } from './client-messages.js';
import { BACKEND_FULL, type ClientSocket } from './client-socket.js';
import type { ParameterSet } from './parameter-sets.js';
import type { LinkUser, PooledBackend } from './pooled-backend.js';
import type { PoolContext } from './pool-context.js';

export interface ClientLinkDeps {
  readonly context: PoolContext;
  readonly tracker: ResponseTracker;
  readonly log: StatementLog;
  readonly messages: ClientMessages;
  readonly socket: ClientSocket;
  readonly types: () => SessionBinaryTypes;
  /** A chunk from the server was worked off. */
  readonly settle: () => void;
  /** The connection is lost. */
  readonly gone: () => void;
}

export class ClientLink implements LinkUser {
  readonly #deps: ClientLinkDeps;
  #backend: PooledBackend | null = null;
  cancelledAs: ErrorResponseFields | null = null;
  refusing: ErrorResponseFields | null = null;
  /** The error that ended a connection of it, as a frame. */
  fatal: Buffer | null = null;

  constructor(deps: ClientLinkDeps) {
    this.#deps = deps;
  }

  to(backend: PooledBackend): void {
    this.#backend = backend;
    backend.link(this);
  }

  get tracker(): ResponseTracker {
    return this.#deps.tracker;
  }

  get log(): StatementLog {
    return this.#deps.log;
  }

  get types(): SessionBinaryTypes {
    return this.#deps.types();
  }

  get unsent(): boolean {
    return this.#deps.socket.unsent;
  }

  toClient(bytes: Buffer): boolean {
    return this.#deps.socket.write(bytes);
  }

  onServerError(sqlState: string, fatal: Buffer | null): void {
    if (fatal !== null) {
      this.fatal = fatal;
      return;
    }
    this.#deps.context.onError(sqlState);
    if (sqlState === STALE_PLAN || sqlState === UNKNOWN_STATEMENT) this.#deps.messages.renewPlans();
  }

  get creates(): boolean {
    return this.#deps.messages.creates;
  }

  onTag(tag: string): void {
    if (this.#backend !== null) this.#deps.messages.tagged(tag, this.#backend);
  }

  inClientsWords(payload: Buffer): Buffer {
    return this.#deps.messages.inClientsWords(payload);
  }

  onParameters(set: ParameterSet): void {
    this.#deps.socket.told = set;
  }

  onBackendDrain(): void {
    this.#deps.socket.resume(BACKEND_FULL);
  }

  settle(): void {
    this.#deps.settle();
  }

  onBackendGone(): void {
    this.#deps.gone();
  }
}

/** feature_not_supported, as which a changed result type of a plan is reported. */
const STALE_PLAN = '0A000';
const UNKNOWN_STATEMENT = '26000';
