/**
 * A client's way in: handshake → room? → database known? → admission by the gate → backend opened on the route's side
 * → gate still open? (else that backend is given up and the client waits on) → session, or client of a pool.
 *
 * Invariants: a client that leaves on the way frees its place; one that is refused has its credentials wiped.
 *
 * Failures before there is a session are told the client as PostgreSQL tells them, by a FATAL ErrorResponse in place
 * of the first ParameterStatus.
 */
import type net from 'node:net';
import { UnderstudyError } from '../../core/errors.js';
import { WHOLE_DATABASE, type Side } from '../../core/ports.js';
import { encodeTerminate } from '../../wire/postgres/messages.js';
import { BackendRefused } from '../backend/backend-refused.js';
import { openBackend, type Backend, type BackendEndpoint } from '../backend/backend.js';
import { acceptClient, type AcceptedClient } from './client-handshake.js';
import type { Places } from './client-places.js';
import type { Clients } from '../clients.js';
import { wipeCredentials } from './credentials.js';
import { destine, type Destined } from './databases.js';
import type { Gate } from '../gate.js';
import type { Pools } from '../pool/pools.js';
import type { ProxyDeps } from '../proxy-interface.js';
import { NOT_NOW, STARTING, fatal } from '../refusals.js';
import type { Router } from '../router.js';
import { ServerProtocols } from '../backend/server-protocols.js';
import type { SessionContext } from '../session/session-context.js';
import { poolModeOf } from '../pool/pool-settings.js';
import { isReplication } from '../session/session-phases.js';
import type { ProxySettings } from '../settings.js';
import { closeWith } from '../socket-reader.js';
import { NotAdmitted } from '../waiting-room.js';
import type { ClientTls } from './tls.js';
import type { VerifierSource } from './verifiers.js';

export interface ClientEntryDeps {
  readonly settings: ProxySettings;
  readonly proxy: ProxyDeps;
  readonly router: Router;
  readonly gate: Gate;
  readonly pools: Pools;
  readonly places: Places;
  readonly clients: Clients;
  readonly context: SessionContext;
  /** Of sessions that are passed through: nothing of what they do is the migration's. */
  readonly passedContext: SessionContext;
  readonly onCancel: (processId: number, secret: Buffer) => void;
  /** Fires when no more clients are taken. */
  readonly stopping: AbortSignal;
}

export class ClientEntry {
  readonly #deps: ClientEntryDeps;
  readonly #protocols: ServerProtocols;
  readonly #handshaking = new Set<net.Socket>();
  /** Of clients that are on their way in: each fires where its client leaves, or no more are taken. */
  readonly #entering = new Set<AbortController>();
  #refused = 0;
  /** For connections from now on. */
  tls: ClientTls | undefined;

  constructor(deps: ClientEntryDeps) {
    this.#deps = deps;
    this.tls = deps.settings.tls;
    deps.stopping.addEventListener('abort', () => {
      for (const entering of this.#entering) entering.abort(deps.stopping.reason);
    });
    this.#protocols = new ServerProtocols(deps.proxy.clock, deps.settings.connectTimeoutMs);
  }

  get refused(): number {
    return this.#refused;
  }

  get handshaking(): number {
    return this.#handshaking.size;
  }

  accept(socket: net.Socket): void {
    const { settings, proxy } = this.#deps;
    socket.on('error', () => undefined);
    if (this.#handshaking.size >= settings.maxHandshakes) {
      this.#refused += 1;
      socket.destroy();
      return;
    }
    this.#handshaking.add(socket);
    this.#serve(socket).catch((error: unknown) => {
      proxy.log.error({ error: String(error) }, 'a connection failed');
      socket.destroy();
    });
  }

  async #serve(socket: net.Socket): Promise<void> {
    const { settings, proxy, stopping, onCancel } = this.#deps;
    const { tls } = this;
    let client: AcceptedClient | null;
    try {
      client = await acceptClient(socket, {
        verifiers: { lookup: (user, database) => this.#verifiersFor(database).lookup(user, database) },
        authentication: settings.authentication,
        physicalDatabase: proxy.source.database,
        timeoutMs: settings.handshakeTimeoutMs,
        stopping,
        ...(tls === undefined ? {} : { tls }),
        serverProtocolMinor: (user, database) => this.#serverProtocolMinor(user, database),
        onCancel,
        log: proxy.log,
      });
    } finally {
      this.#handshaking.delete(socket);
    }
    if (client === null) return;
    const entered = client.socket;
    // A client that leaves while it waits frees its place.
    const gone = new AbortController();
    const onGone = (): void => gone.abort(new UnderstudyError('cancelled', 'the client has left'));
    entered.once('close', onGone);
    this.#entering.add(gone);
    try {
      const refusal = await this.#enter(client, gone.signal);
      if (refusal === null) return;
      this.#refused += 1;
      wipeCredentials(client.credentials);
      closeWith(entered, refusal);
    } finally {
      entered.off('close', onGone);
      this.#entering.delete(gone);
    }
  }

  /** Lets it in, or returns the FATAL it is to be told. */
  async #enter(client: AcceptedClient, gone: AbortSignal): Promise<Buffer | null> {
    const { places, settings, stopping } = this.#deps;
    if (stopping.aborted) return fatal(NOT_NOW);
    const full = await places.take(client, settings);
    if (full !== null) return fatal({ sqlState: '53300', message: full });
    let refusal: Buffer | null = NOTHING;
    try {
      refusal = await this.#admit(client, gone);
      return refusal;
    } finally {
      // Where it was let in, the place is its own.
      if (refusal !== null) places.free(client);
    }
  }

  async #admit(client: AcceptedClient, gone: AbortSignal): Promise<Buffer | null> {
    try {
      const destined = this.#destine(client.database);
      if (destined.kind === 'unserved') return await this.#refuseDatabase(client, gone);
      if (destined.kind === 'passed-through') return await this.#passThrough(client, destined.database, gone);
      return await this.#manage(client, gone);
    } catch (error) {
      if (error instanceof BackendRefused) return error.response;
      if (error instanceof NotAdmitted) return fatal(error);
      if (error instanceof UnderstudyError && error.code === 'cancelled') {
        return this.#answerTo(gone);
      }
      if (error instanceof UnderstudyError && error.code === 'route-unknown') return fatal(STARTING);
      this.#deps.proxy.log.error({ error: String(error) }, 'opening a session failed');
      return fatal({ sqlState: 'XX000', message: 'internal error of the proxy' });
    }
  }

  /** One that has left is told nothing. */
  #answerTo(gone: AbortSignal): Buffer {
    return gone.aborted && !this.#deps.stopping.aborted ? NOTHING : fatal(NOT_NOW);
  }

  /** To the database being migrated: through the gate, to the side that serves. */
  async #manage(client: AcceptedClient, gone: AbortSignal): Promise<Buffer | null> {
    const { gate, router, proxy, clients, context, stopping } = this.#deps;
    for (;;) {
      await gate.admission(gone);
      if (gone.aborted) return this.#answerTo(gone);
      const { side } = router.route(WHOLE_DATABASE);
      if (this.#isPooled(client)) {
        if (await this.#enterPool(client, side)) return null;
        continue;
      }
      const { endpoint, database } = proxy[side];
      const backend = await this.#open(client, endpoint, database, gone);
      if (this.#stillServed(side) && !stopping.aborted) {
        clients.begin(client, backend, side, context);
        return null;
      }
      closeWith(backend.socket, encodeTerminate());
      if (stopping.aborted) return fatal(NOT_NOW);
    }
  }

  /** The gate may have closed, and the side changed, while a server answered. */
  #stillServed(side: Side): boolean {
    const { gate, router } = this.#deps;
    return gate.state === 'open' && router.route(WHOLE_DATABASE).side === side;
  }

  #isPooled(client: AcceptedClient): boolean {
    const mode = poolModeOf(this.#deps.settings.pool, client.database);
    return mode !== 'session' && !isReplication(client.parameters.get('replication'));
  }

  /** False: the gate has closed, or the side changed, meanwhile. */
  async #enterPool(client: AcceptedClient, side: Side): Promise<boolean> {
    const { pools, clients, stopping } = this.#deps;
    const pool = await pools.poolFor(client, side);
    if (stopping.aborted) throw new UnderstudyError('cancelled', 'the proxy is stopping');
    const present = this.#stillServed(side);
    if (present) clients.beginPooled(client, pool);
    return present;
  }

  async #open(
    client: AcceptedClient,
    endpoint: BackendEndpoint,
    database: string,
    gone: AbortSignal,
  ): Promise<Backend> {
    const { settings } = this.#deps;
    return await openBackend(
      endpoint,
      {
        user: client.user,
        database,
        parameters: client.parameters,
        protocolMinor: client.protocolMinor,
      },
      client.credentials,
      {
        connectTimeoutMs: settings.connectTimeoutMs,
        signal: gone,
      },
    );
  }

  #destine(database: string | undefined): Destined {
    const { settings, proxy } = this.#deps;
    const managed = proxy.source.database;
    return destine(database ?? managed, managed, settings.databases);
  }

  /** Other databases are on the source alone, and so are the passwords that open them. */
  #verifiersFor(database: string | undefined): VerifierSource {
    const { verifiers, sourceVerifiers } = this.#deps.proxy;
    return this.#destine(database).kind === 'managed' ? verifiers : (sourceVerifiers ?? verifiers);
  }

  /** What the server would agree to that the client will be connected to. */
  #serverProtocolMinor(user: string, database: string): Promise<number> {
    const { router, proxy } = this.#deps;
    const managed = this.#destine(database).kind === 'managed';
    const side = managed ? (router.get(WHOLE_DATABASE)?.side ?? 'source') : 'source';
    return this.#protocols.minorOf(proxy[side].endpoint, { user, database });
  }

  /** Another database of the source's: no gate stands in front of it. */
  async #passThrough(client: AcceptedClient, database: string, gone: AbortSignal): Promise<Buffer | null> {
    const { proxy, clients, passedContext, stopping } = this.#deps;
    const backend = await this.#open(client, proxy.source.endpoint, database, gone);
    if (stopping.aborted) {
      closeWith(backend.socket, encodeTerminate());
      return fatal(NOT_NOW);
    }
    clients.beginPassedThrough(client, backend, passedContext);
    return null;
  }

  /** For a database that is not served the server's own refusal is relayed, and its consent refused. */
  async #refuseDatabase(client: AcceptedClient, gone: AbortSignal): Promise<Buffer> {
    const { source } = this.#deps.proxy;
    const backend = await this.#open(client, source.endpoint, client.database, gone);
    closeWith(backend.socket, encodeTerminate());
    return fatal({
      sqlState: '3D000',
      message: `database "${client.database}" is not served by this Understudy, which serves "${source.database}"`,
    });
  }
}

const NOTHING = Buffer.alloc(0);
