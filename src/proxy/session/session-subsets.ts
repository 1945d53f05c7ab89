/**
 * Whether each of a session's statements is given a side of its own (session-routing.ts), which is so while subsets are on
 * different sides; and that routing, wired to what the session says and holds.
 *
 * States: not routed ⇄ routed (`set`, at a boundary only). What is to come at the next boundary is `wanted`.
 */
import type { HeldInput } from './held-input.js';
import type { SessionContext } from './session-context.js';
import { askScope } from '../subset/name-scope.js';
import type { RoutedSession } from '../subset/routed-session.js';
import { SEGMENT_BYTES_MAX, SessionRouting } from '../subset/session-routing.js';
import type { SessionSockets } from './session-sockets.js';
import type { SessionWire } from './session-wire.js';
import type { SideMoves } from '../subset/subset-moves.js';
import type { SubsetRouting } from '../subset/subset-routing.js';

export interface SessionSubsetsDeps extends Pick<
  RoutedSession,
  'side' | 'closed' | 'mayBegin' | 'clientEnded' | 'pass' | 'terminate' | 'settle'
> {
  readonly context: SessionContext;
  readonly wire: SessionWire;
  readonly sockets: SessionSockets;
  readonly held: HeldInput;
  readonly moves: (routing: SubsetRouting) => SideMoves;
}

export class SessionSubsets {
  readonly #deps: SessionSubsetsDeps;
  #routing: SessionRouting | null = null;
  /** To be set at the next boundary. */
  wanted: boolean | null = null;

  constructor(deps: SessionSubsetsDeps) {
    this.#deps = deps;
  }

  get routed(): boolean {
    return this.#routing !== null;
  }

  /** The client is in the middle of a message that is dropped or passed on, or the session is between sides. */
  get midway(): boolean {
    return this.#routing?.midway === true;
  }

  /** Nothing that the routing began is under way. */
  get atRest(): boolean {
    return this.#routing?.atRest !== false;
  }

  /** Begins, ceases, or begins anew. The session must be at a boundary. */
  set(wanted: boolean): void {
    this.wanted = null;
    this.#routing?.end();
    this.#routing = null;
    const { routing } = this.#deps.context;
    if (wanted && routing !== null) this.#routing = this.#newRouting(routing);
    this.#deps.held.waitsFor(this.routed ? SEGMENT_BYTES_MAX : 0);
  }

  /** As was wanted. Returns whether anything was. */
  setWanted(): boolean {
    const { wanted } = this;
    if (wanted !== null) this.set(wanted);
    return wanted !== null;
  }

  #newRouting(routing: SubsetRouting): SessionRouting {
    const { context, wire, sockets, held, moves, ...session } = this.#deps;
    const { own } = wire;
    return new SessionRouting(routing, {
      ...session,
      tracker: wire.tracker,
      held,
      clientStream: wire.clientStream,
      moves: moves(routing),
      unsent: () => false,
      answerHere: () => false,
      scope: () => askScope((sql) => own.askAnyway(sql)),
      preparedText: () => undefined,
      toServer: (bytes) => sockets.toServer(bytes),
      ask: (sql) => own.askAnyway(sql),
      again: (messages, kind) => own.send(messages, kind),
      unnamedAgain: () => {
        const again = own.unnamedAgain();
        if (again.length > 0) sockets.toServer(again);
      },
      refusing: (error) => {
        context.onError(error.sqlState);
        wire.serverStream.refusing = error;
      },
      parameter: (name) => wire.parameter(name),
    });
  }

  /** Goes on with what may go on. */
  go(): void {
    this.#routing?.go();
  }

  /** The client's statements are answered here from now on. */
  givenUp(): void {
    this.#routing?.givenUp();
  }

  /** Final. */
  end(): void {
    this.#routing?.end();
  }
}
