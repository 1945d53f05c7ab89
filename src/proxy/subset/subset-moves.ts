/**
 * One session between two sides: moved at rest, as a switch moves it, with the connection that it leaves kept for the way
 * back, and what that holds remembered.
 *
 * Invariant: a connection is taken over only if it holds what the session holds; SessionMove sees to that, for either side.
 */
import type { Side } from '../../core/ports.js';
import { SessionMove, type MoveDeps, type MoveSlots, type MoveTarget } from '../session/session-move.js';
import type { SessionContext } from '../session/session-context.js';
import type { Session } from '../session/session.js';
import type { NotMoved, RoutedMoves } from './routed-session.js';
import type { SubsetRouting } from './subset-routing.js';

export interface SideMovesDeps extends MoveDeps {
  readonly target: (side: Side) => MoveTarget;
  readonly slots: MoveSlots;
}

export class SideMoves implements RoutedMoves {
  readonly #session: Session;
  readonly #deps: SideMovesDeps;
  readonly #to = new Map<Side, SessionMove>();
  readonly #over = new AbortController();
  /** The last move was to a connection that the session had not been on. */
  toNew = false;

  constructor(session: Session, deps: SideMovesDeps) {
    this.#session = session;
    this.#deps = deps;
  }

  #move(to: Side): SessionMove {
    let move = this.#to.get(to);
    if (move === undefined) {
      move = new SessionMove(this.#session, this.#deps.target(to), this.#deps);
      this.#to.set(to, move);
    }
    return move;
  }

  /** The session must be quiet, and stay so. Resolves with null once it is on `to`. Never throws. */
  async to(to: Side): Promise<NotMoved | null> {
    const session = this.#session;
    const from = session.side;
    if (from === to) return null;
    const move = this.#move(to);
    const { askTimeoutMs } = this.#deps.context.settings;
    const { opened } = move;
    try {
      await move.refresh(askTimeoutMs, this.#over.signal, this.#deps.slots);
      if (!move.warm) return notMoved(to, move);
      const warm = await move.take(this.#over.signal);
      if (warm === null || session.phase === 'closed') {
        warm?.discard();
        return notMoved(to, move);
      }
      const { asked } = move;
      this.toNew = move.opened !== opened;
      const left = session.swapAside(warm, to);
      if (left === null) return null;
      if (asked === null) left.discard();
      else this.#move(from).keep(left, asked);
      return null;
    } catch {
      return notMoved(to, move);
    }
  }

  /** Final. */
  end(): void {
    this.#over.abort();
    for (const move of this.#to.values()) move.discard();
    this.#to.clear();
  }
}

/** Those of a session whose statements are routed. */
export function sideMoves(session: Session, context: SessionContext, routing: SubsetRouting): SideMoves {
  const { slots, target, settingNames } = routing;
  return new SideMoves(session, { context, settingNames, listenersStay: true, target, slots });
}

function notMoved(to: Side, { blockers }: SessionMove): NotMoved {
  const pinned = blockers.filter(({ reason }) => reason !== 'destination-refuses');
  if (pinned.length > 0) {
    const named = pinned.slice(0, 3).map(({ reason, detail }) => `${reason} ${detail}`);
    return {
      sqlState: '0A000',
      message: `this session can't go to the ${to}, which serves what it asks for: it holds ${named.join(', ')}`,
    };
  }
  const refused = blockers.map(({ detail }) => detail).slice(0, 3);
  return {
    sqlState: '57P03',
    message: `the ${to}, which serves what is asked for, can't be reached${refused.length > 0 ? ` (${refused.join(', ')})` : ''}`,
  };
}
