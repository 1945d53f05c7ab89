/**
 * What one session says on the wire, and what that leaves to keep track of: the answers due, the statements that ran, the
 * parameters and the type OIDs that its client knows, the recording, and the proxy's own words between the client's.
 *
 * It lasts as long as the session, across its backends: `moved` has it begin anew with another. What is to be said, and
 * when, is session.ts's to decide.
 *
 * Invariant: what a client was told, a parameter's value or a type's OID, holds for it on each side that it moves to.
 */
import type { Side } from '../../core/ports.js';
import { encodeParameterStatus } from '../../wire/postgres/messages.js';
import type { Backend } from '../backend/backend.js';
import { SessionBinaryTypes } from './binary-types.js';
import type { AcceptedClient } from '../login/client-handshake.js';
import { recordedParameters } from './client-recording.js';
import { ClientStream } from './client-stream.js';
import { ResponseTracker, STATUS_IDLE } from './response-tracker.js';
import { ServerStream } from './server-stream.js';
import type { AdoptedClient, SessionContext } from './session-context.js';
import { SessionOwn } from './session-own.js';
import { TOO_DEEP, type SessionSockets } from './session-sockets.js';
import type { SessionActivity } from './session-watch.js';
import { StatementLog } from './statement-log.js';
import type { SessionOids } from './type-oids.js';

export interface SessionWireDeps {
  readonly id: number;
  readonly accepted: AcceptedClient;
  readonly replication: boolean;
  /** The side whose OIDs the client knows. */
  readonly began: Side;
  readonly context: SessionContext;
  readonly sockets: SessionSockets;
  /** {@link SessionWire.askable}, and the session is in a state for it. */
  readonly askable: () => boolean;
}

export class SessionWire {
  readonly #deps: SessionWireDeps;
  readonly tracker = new ResponseTracker();
  readonly log: StatementLog;
  readonly own: SessionOwn;
  readonly clientStream: ClientStream;
  #serverStream: ServerStream;
  readonly #types: SessionBinaryTypes;
  /** Null while the session sits where it began, or where nothing differs: then no OID is looked at. */
  #oids: SessionOids | null = null;
  readonly #parameters = new Map<string, string>();
  #recordedBytes = 0;
  #transactionSinceMs: number | null = null;

  constructor(deps: SessionWireDeps) {
    this.#deps = deps;
    const { context, sockets, replication } = deps;
    const { settings } = context;
    this.#types = new SessionBinaryTypes(context.binaryTypes, deps.began);
    this.own = new SessionOwn({
      tracker: this.tracker,
      clientStream: () => this.clientStream,
      serverStream: () => this.#serverStream,
      oids: () => this.#oids,
      toServer: (bytes) => sockets.toServer(bytes),
      askable: deps.askable,
      replyBytesMax: settings.stateBytesMax,
    });
    this.log = new StatementLog(
      context.tap,
      deps.id,
      settings.textBytesMax,
      () => context.clock.monotonicMs(),
      settings.parameterBytesMax,
    );
    this.clientStream = new ClientStream({
      tracker: this.tracker,
      log: this.log,
      text: context.text,
      types: this.#types,
      frameBytesMax: settings.frameBytesMax,
      forward: this.#forwarder(),
      ...(replication ? { commandsOnly: () => context.routing?.router.armed === true } : {}),
    });
    this.#serverStream = this.#newServerStream();
  }

  /** Of the present backend. */
  get serverStream(): ServerStream {
    return this.#serverStream;
  }

  /** As the client knows it. */
  parameter(name: string): string | undefined {
    return this.#parameters.get(name);
  }

  /** Null outside a transaction. */
  get inTransactionMs(): number | null {
    const since = this.#transactionSinceMs;
    return since === null ? null : Math.round(this.#deps.context.clock.monotonicMs() - since);
  }

  /** Everything sent is answered, and neither end stands in the middle of a frame. */
  get atBoundary(): boolean {
    return (
      this.tracker.quiescent &&
      !this.clientStream.walker.insideFrame &&
      !this.#serverStream.walker.insideForwardedFrame
    );
  }

  /** A simple query of the proxy's own can be sent without harm to what the client has prepared or begun. */
  get askable(): boolean {
    const { terminated, unnamedIrreplaceable } = this.clientStream;
    return this.atBoundary && !terminated && !unnamedIrreplaceable;
  }

  /** Of a session that is served. */
  get activity(): SessionActivity {
    const { tracker } = this;
    if (tracker.ownAtHead) return 'exempt';
    if (tracker.settled) return tracker.status === STATUS_IDLE ? 'idle' : 'idle-in-transaction';
    const waitsForClient = !tracker.awaitingReady && !tracker.owesExtended;
    return waitsForClient && tracker.copy === 'none' ? 'idle-in-transaction' : 'running';
  }

  /** How the client's bytes go to the server: recorded on the way, where that is asked for. */
  #forwarder(): (bytes: Buffer) => void {
    const { id, accepted, replication, context, sockets } = this.#deps;
    const { recorder } = context;
    if (recorder === null || replication) return (bytes) => sockets.toServer(bytes);
    recorder.opened(id, recordedParameters(accepted));
    const { tracker } = this;
    return (bytes) => {
      const known = Math.min(this.#recordedBytes, bytes.length);
      this.#recordedBytes -= known;
      const fresh = known === 0 ? bytes : bytes.subarray(known);
      recorder.sent(id, fresh, tracker.sent, tracker.answered, tracker.status);
      sockets.toServer(bytes);
    };
  }

  #newServerStream(): ServerStream {
    const { context, sockets } = this.#deps;
    const { settings } = context;
    return new ServerStream({
      tracker: this.tracker,
      log: this.log,
      own: this.own.exchanges,
      frameBytesMax: settings.frameBytesMax,
      replyBytesMax: settings.stateBytesMax,
      oids: this.#oids?.toClient ?? null,
      types: this.#types,
      forward: (bytes) => sockets.toClient(bytes),
      onParameter: (name, value) => this.#parameters.set(name, value),
      onError: context.onError,
    });
  }

  /** The client has been told of these. */
  knows(parameters: ReadonlyMap<string, string>): void {
    for (const [name, value] of parameters) this.#parameters.set(name, value);
  }

  /** Takes over what the client has prepared before it became a session. */
  adopt(before: AdoptedClient): void {
    for (const { name, text, flags } of before.prepared) this.log.parse(name, text, 0, text.length, flags);
    this.#recordedBytes = before.recordedBytes;
    this.clientStream.adopt(before);
  }

  /** Notes whether a transaction is open. Returns whether the server has become ready since the last call. */
  followReady(): boolean {
    if (!this.#serverStream.sawReady) return false;
    this.#serverStream.sawReady = false;
    if (this.tracker.status === STATUS_IDLE) this.#transactionSinceMs = null;
    else this.#transactionSinceMs ??= this.#deps.context.clock.monotonicMs();
    return true;
  }

  /** Where too many messages await an answer, the client is not read. */
  boundDepth(): void {
    const { depth } = this.tracker;
    if (depth > PIPELINE_DEPTH_MAX) this.#deps.sockets.pauseClient(TOO_DEEP);
    else if (depth < PIPELINE_DEPTH_MAX / 4) this.#deps.sockets.resumeClient(TOO_DEEP);
  }

  /** The session is on another backend: nothing is due, and the client is told of the parameters that differ there. */
  moved(backend: Backend, side: Side): void {
    const { context, sockets, began } = this.#deps;
    this.tracker.reset();
    this.log.moved();
    this.#oids = context.oids(began, side);
    this.clientStream.oids = this.#oids?.toServer ?? null;
    this.#serverStream = this.#newServerStream();
    this.#serverStream.whole = true;
    for (const [name, value] of backend.parameters) {
      if (this.#parameters.get(name) === value) continue;
      this.#parameters.set(name, value);
      sockets.queueToClient(encodeParameterStatus(name, value));
    }
  }

  closed(): void {
    const { context, id } = this.#deps;
    // The log tells of a last outcome, which the recording takes as long as it is open.
    this.log.closed();
    context.recorder?.closed(id);
  }
}

/** Messages awaiting an answer beyond which a client is no longer read. */
const PIPELINE_DEPTH_MAX = 8192;
