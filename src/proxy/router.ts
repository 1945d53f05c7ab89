/**
 * Which side serves a subset. While all subsets are on one side no statement is looked at; there is one subset now.
 *
 * A subset has no route until one is set: at startup the side that may be written has to be found out first.
 */
import { UnderstudyError } from '../core/errors.js';
import { WHOLE_DATABASE, type Route, type SubsetId } from '../core/ports.js';

export class Router {
  readonly #routes = new Map<SubsetId, Route>();

  /** Throws `route-unknown` before the first `set`. */
  route(subset: SubsetId): Route {
    const route = this.#routes.get(known(subset));
    if (route === undefined) {
      throw new UnderstudyError('route-unknown', 'which side serves the database is not known yet');
    }
    return route;
  }

  get(subset: SubsetId): Route | undefined {
    return this.#routes.get(known(subset));
  }

  set(subset: SubsetId, route: Route): void {
    this.#routes.set(known(subset), route);
  }
}

/** Sides of key ranges or tenants come later; until then any other name is a mistake of the caller's. */
export function known(subset: SubsetId): SubsetId {
  if (subset !== WHOLE_DATABASE) {
    throw new UnderstudyError('internal', `there is no subset ${subset}`);
  }
  return subset;
}
