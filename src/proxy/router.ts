/**
 * Which side serves which subset. While all subsets are on one side no statement is looked at; once they differ, the router
 * is armed, and each transaction is given its side (session-routing.ts).
 *
 * A subset has no route until one is set: at startup the side that may be written has to be found out first. Without
 * subsets in the configuration there is one, `all`. With them, `all` stands for where a connection begins: at `rest`, or,
 * where that is not served, at one that is.
 */
import { UnderstudyError } from '../core/errors.js';
import { WHOLE_DATABASE, type Side, type SubsetId } from '../core/ports.js';
import type { Route } from '../core/traffic-ports.js';

export class Router {
  readonly subsets: readonly SubsetId[];
  readonly #routes = new Map<SubsetId, Route>();
  /** Of subsets whose route is presumed only: why nothing of theirs is served. */
  readonly #unserved = new Map<SubsetId, string>();
  readonly #home: SubsetId;

  /** `subsets`: those of the configuration and `rest`, which is the last. */
  constructor(subsets: readonly SubsetId[] = [WHOLE_DATABASE]) {
    this.subsets = subsets;
    this.#home = subsets.at(-1) ?? WHOLE_DATABASE;
  }

  /** Throws `route-unknown` before the first `set`. */
  route(subset: SubsetId): Route {
    const route = this.get(subset);
    if (route === undefined) {
      throw new UnderstudyError('route-unknown', 'which side serves the database is not known yet');
    }
    return route;
  }

  /** Of `all`: undefined until every subset's route is known. */
  get(subset: SubsetId): Route | undefined {
    if (subset === WHOLE_DATABASE && this.#routes.size < this.subsets.length) return undefined;
    return this.#routes.get(this.#known(subset));
  }

  /** `unserved`: the route is presumed only, and what asks for the subset is refused with these words. */
  set(subset: SubsetId, route: Route, unserved?: string): void {
    for (const each of subset === WHOLE_DATABASE ? this.subsets : [this.#known(subset)]) {
      this.#routes.set(each, route);
      if (unserved === undefined) this.#unserved.delete(each);
      else this.#unserved.set(each, unserved);
    }
  }

  unserved(subset: SubsetId): string | undefined {
    return this.#unserved.get(subset);
  }

  /** Whether `subset` is one that a switch can be of. */
  has(subset: SubsetId): boolean {
    return this.subsets.includes(subset);
  }

  /** All routes are known, and not all lead to one side or not all are served. */
  get armed(): boolean {
    if (this.subsets.length < 2 || this.get(WHOLE_DATABASE) === undefined) return false;
    return this.#sides.size > 1 || this.#unserved.size > 0;
  }

  /** Whether all would be on `side` once `moving` are. */
  united(moving: readonly SubsetId[], side: Side): boolean {
    const all = moving.includes(WHOLE_DATABASE);
    return this.subsets.every(
      (each) => all || moving.includes(each) || this.#routes.get(each)?.side === side,
    );
  }

  get #sides(): ReadonlySet<Side> {
    return new Set([...this.#routes.values()].map(({ side }) => side));
  }

  /** Throws `internal`: sides of key ranges or tenants come later; until then any other name is a mistake of the caller's. */
  #known(subset: SubsetId): SubsetId {
    if (subset === WHOLE_DATABASE) {
      if (!this.#unserved.has(this.#home)) return this.#home;
      return this.subsets.find((each) => !this.#unserved.has(each)) ?? this.#home;
    }
    if (this.has(subset)) return subset;
    throw new UnderstudyError('internal', `there is no subset ${subset}`);
  }
}
