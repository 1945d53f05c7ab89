/**
 * The bound on one server's connections over all pools together, and for each user.
 *
 * A place is taken before a connection is opened and given back when its socket has closed, whoever has it then: an
 * idle one, a client in a transaction, reads that share it, a client that was pinned to it. Who finds no place is a
 * claimant until there is one.
 *
 * Invariants:
 * - No more places are taken than the bounds say, but for those taken `beyond`: connections made ready for a switch,
 *   as many as the other side has.
 * - Shared connections, which are never given back while reads keep coming, leave at least one place in each bound.
 * - Places go to claimants by the age of their claims. For a claim, a connection that nobody uses is given up at once;
 *   of those in use, one that comes back, where the claim is older than those of its own pool's clients and older than
 *   {@link PATIENCE_MS}. So a busy pool starves no other, and as nobody who holds a connection ever waits for a second
 *   one, none waits for ever. All waits are bounded in time by those who wait.
 */
import type net from 'node:net';
import { NotAdmitted } from '../waiting-room.js';

/** Opening a connection costs more than a short wait for one. */
const PATIENCE_MS = 50;
const TOO_MANY = '53300';

export interface Claimant {
  readonly user: string;
  /** Since when it has waited for a place; null: it doesn't. */
  readonly claimsSinceMs: number | null;
  /** Since when its connection used longest ago has been idle; null: it has none to give up. */
  readonly idleSinceMs: number | null;
  /** There may be a place. */
  tryAgain(): void;
  /** Closes that connection, having called {@link Place.leave} for it. */
  giveUpIdle(): void;
}

interface Count {
  taken: number;
  shared: number;
}

export class Place {
  readonly #give: (left: boolean) => void;
  readonly #leaves: () => void;
  #left = false;
  #given = false;
  #after: () => void = () => undefined;

  constructor(leaves: () => void, give: (left: boolean) => void) {
    this.#leaves = leaves;
    this.#give = give;
  }

  /** Its connection is being closed for a claimant. */
  leave(): void {
    if (this.#left || this.#given) return;
    this.#left = true;
    this.#leaves();
  }

  give(): void {
    if (this.#given) return;
    this.#given = true;
    this.#after();
    this.#give(this.#left);
  }

  /** Given back when the connection has closed; then `after` is called. */
  follow(socket: net.Socket, after: () => void): void {
    this.#after = after;
    if (socket.destroyed) this.give();
    else socket.once('close', () => this.give());
  }
}

export type PlaceKind = 'own' | 'shared' | 'beyond';

export class ConnectionBound {
  /** 0: none. */
  readonly #max: number;
  readonly #perUserMax: number;
  readonly #all: Count = { taken: 0, shared: 0 };
  readonly #users = new Map<string, Count>();
  readonly #claimants = new Set<Claimant>();
  /** Connections given up for claimants that have not closed yet. */
  #leaving = 0;
  #logins = 0;

  constructor(max: number, perUserMax: number) {
    this.#max = max;
    this.#perUserMax = perUserMax;
  }

  join(claimant: Claimant): void {
    this.#claimants.add(claimant);
  }

  quit(claimant: Claimant): void {
    this.#claimants.delete(claimant);
  }

  /** null: there is none at present. */
  take(user: string, kind: PlaceKind): Place | null {
    const own = this.#users.get(user) ?? { taken: 0, shared: 0 };
    if (kind !== 'beyond' && !this.#hasRoom(own, kind === 'shared')) return null;
    this.#users.set(user, own);
    const by = kind === 'shared' ? 1 : 0;
    for (const count of [this.#all, own]) {
      count.taken += 1;
      count.shared += by;
    }
    return new Place(
      () => (this.#leaving += 1),
      (left) => {
        if (left) this.#leaving -= 1;
        for (const count of [this.#all, own]) {
          count.taken -= 1;
          count.shared -= by;
        }
        if (own.taken === 0) this.#users.delete(user);
        this.look();
      },
    );
  }

  /**
   * Waits for a place. Rejects with {@link NotAdmitted} where there is none within `timeoutMs`, or `waitingMax` others
   * wait so.
   */
  wait(
    user: string,
    limits: { readonly nowMs: number; readonly timeoutMs: number; readonly waitingMax: number },
  ): Promise<Place> {
    const place = this.take(user, 'own');
    if (place !== null) return Promise.resolve(place);
    if (this.#logins >= limits.waitingMax) return Promise.reject(full('too many wait for one'));
    this.#logins += 1;
    return new Promise<Place>((resolve, reject) => {
      const claimant: Claimant = {
        user,
        claimsSinceMs: limits.nowMs,
        idleSinceMs: null,
        tryAgain: () => {
          const found = this.take(user, 'own');
          if (found === null) return;
          done();
          resolve(found);
        },
        giveUpIdle: () => undefined,
      };
      const timer = setTimeout(() => {
        done();
        reject(full(`none came free within ${limits.timeoutMs} ms`));
      }, limits.timeoutMs);
      const done = (): void => {
        clearTimeout(timer);
        this.#logins -= 1;
        this.quit(claimant);
      };
      this.join(claimant);
      this.look();
    });
  }

  /** Lets claimants have what places there are, and makes one where there is none. Call now and then, too. */
  look(): void {
    for (const claimant of this.#claims()) {
      if (this.#roomFor(claimant)) claimant.tryAgain();
    }
    for (const claimant of this.#claims()) {
      if (this.#leaving > 0) return;
      this.#makeRoomOf(claimant.user);
    }
  }

  /** Has a connection that nobody uses given up for one to share, where only its place is missing. */
  clearForShared(user: string): void {
    const own = this.#users.get(user) ?? { taken: 0, shared: 0 };
    const mayShare = (count: Count, max: number): boolean => max === 0 || count.shared + 1 < max;
    if (this.#leaving > 0 || !mayShare(this.#all, this.#max) || !mayShare(own, this.#perUserMax)) return;
    this.#makeRoomOf(user);
  }

  /** Of a connection that has come back: whether it is to be closed. `sinceMs`: of the pool's own next client. */
  isOwed(user: string, sinceMs: number | null, nowMs: number): boolean {
    const own = this.#users.get(user);
    if (this.#max > 0 && this.#all.taken > this.#max) return true;
    if (this.#perUserMax > 0 && (own?.taken ?? 0) > this.#perUserMax) return true;
    if (this.#leaving > 0) return false;
    for (const claimant of this.#claims()) {
      const since = claimant.claimsSinceMs ?? nowMs;
      if (sinceMs !== null && (since >= sinceMs || nowMs - since < PATIENCE_MS)) return false;
      if (!this.#roomFor(claimant) && this.#helps(user, claimant.user)) return true;
    }
    return false;
  }

  /** Oldest first. */
  #claims(): Claimant[] {
    const since = ({ claimsSinceMs }: Claimant): number => claimsSinceMs ?? Infinity;
    return [...this.#claimants]
      .filter((claimant) => since(claimant) < Infinity)
      .toSorted((a, b) => since(a) - since(b));
  }

  #makeRoomOf(user: string): void {
    let longest: Claimant | null = null;
    for (const other of this.#claimants) {
      if (other.idleSinceMs === null || !this.#helps(other.user, user)) continue;
      if (other.idleSinceMs < (longest?.idleSinceMs ?? Infinity)) longest = other;
    }
    longest?.giveUpIdle();
  }

  #roomFor({ user }: Claimant): boolean {
    return this.#hasRoom(this.#users.get(user) ?? { taken: 0, shared: 0 }, false);
  }

  #hasRoom(own: Count, shared: boolean): boolean {
    return fits(this.#all, this.#max, shared) && fits(own, this.#perUserMax, shared);
  }

  /** Whether a place of `from`'s is one that `user` could take. */
  #helps(from: string, user: string): boolean {
    if (from === user) return true;
    const own = this.#users.get(user) ?? { taken: 0, shared: 0 };
    return fits(own, this.#perUserMax, false);
  }
}

function fits({ taken, shared }: Count, max: number, toShare: boolean): boolean {
  return max === 0 || (taken < max && (!toShare || shared + 1 < max));
}

function full(why: string): NotAdmitted {
  return new NotAdmitted({
    sqlState: TOO_MANY,
    message: `no server connection: ${why} (proxy.poolConnectionsMax, proxy.poolConnectionsPerUserMax)`,
  });
}
