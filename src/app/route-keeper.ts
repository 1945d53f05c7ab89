/**
 * Finds out which side leads, and tells the proxy.
 *
 * States: unknown(problem) ⇄ known(recovery), and of several subsets: unknown → partial(problem) → known.
 * - partial: since the start a server can't be reached, and the other one alone says who leads some of the subsets. These
 *   are served, the others answered clearly; nothing else begins, and asking goes on.
 * - unknown: the proxy listens and answers every client clearly; asking goes on with backoff.
 * - known: the proxy serves. `refresh` asks again, after an operation or when a client met the fence; `confirm` asks until it
 *   is told, behind each registration as a live proxy: a switch before that may have come through another process.
 * Invariant: the proxy is given a route only as `recover` returned it, so never by a guess: a source that can't be
 * asked, or a fence whose journal can't be read, leaves the route unknown (trap 2).
 */
import type { Clock } from '../core/clock.js';
import type { Log } from '../core/log.js';
import { WHOLE_DATABASE, type Side, type SubsetId } from '../core/ports.js';
import type { Route } from '../core/traffic-ports.js';
import { UnderstudyError, asUnderstudyError } from '../core/errors.js';
import type { Recovery } from '../cutover/settings.js';

export interface RouteKeeperDeps {
  readonly recover: (signal: AbortSignal) => Promise<Recovery>;
  readonly setRoute: (subset: SubsetId, route: Route, unserved?: string) => void;
  readonly setUnavailable: (
    subset: SubsetId,
    refusal: { readonly sqlState: string; readonly message: string } | null,
  ) => void;
  readonly log: Log;
  readonly clock: Clock;
  readonly backoffMs?: { readonly first: number; readonly most: number };
}

/** cannot_connect_now: what PostgreSQL itself answers while it starts; clients retry on it. */
const CANNOT_CONNECT_NOW = '57P03';

export class RouteKeeper {
  readonly #deps: RouteKeeperDeps;
  readonly #stop = new AbortController();
  #recovery: Recovery | undefined;
  #partial: Recovery | undefined;
  #problem: UnderstudyError | undefined;
  #asking: Promise<void> | undefined;
  #waiting: ((recovery: Recovery) => void)[] = [];

  constructor(deps: RouteKeeperDeps) {
    this.#deps = deps;
  }

  get recovery(): Recovery | undefined {
    return this.#recovery;
  }

  /** The side that serves what is served. */
  get side(): Side | undefined {
    return (this.#recovery ?? this.#partial)?.route.side;
  }

  /** Why the route is not known; undefined while it is, and before the first answer. */
  get problem(): UnderstudyError | undefined {
    return this.#problem;
  }

  /** Asks once; where that fails, goes on asking in the background. */
  async start(): Promise<void> {
    this.#refuse('Understudy is starting');
    await this.refresh();
    if (this.#recovery === undefined) void this.#askUntil(() => this.#recovery !== undefined);
  }

  /** Resolves at once where the route is known, else as soon as it is. Never where the process stops before. */
  known(): Promise<Recovery> {
    if (this.#recovery !== undefined) return Promise.resolve(this.#recovery);
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  /** Asks again; never throws. A call while one is under way shares it. */
  refresh(): Promise<void> {
    this.#asking ??= this.#ask().finally(() => (this.#asking = undefined));
    return this.#asking;
  }

  /** Asks anew, until there is an answer; what was asked before the call doesn't count. Never throws. */
  async confirm(): Promise<void> {
    await this.#asking;
    await this.refresh();
    await this.#askUntil(() => this.#problem === undefined);
  }

  stop(): void {
    this.#stop.abort(new UnderstudyError('cancelled', 'stopping'));
  }

  async #ask(): Promise<void> {
    const { log } = this.#deps;
    try {
      const recovery = await this.#deps.recover(this.#stop.signal);
      if (recovery.missing !== undefined) {
        this.#servePart(recovery, recovery.missing);
        return;
      }
      const before = this.#recovery;
      this.#recovery = recovery;
      this.#problem = undefined;
      const parts = recovery.subsets ?? [{ subset: WHOLE_DATABASE, route: recovery.route }];
      for (const { subset, route } of parts) this.#deps.setRoute(subset, route);
      if (before === undefined) this.#deps.setUnavailable(WHOLE_DATABASE, null);
      if (before?.route.epoch !== recovery.route.epoch || recovery.action !== 'none')
        log.info({ ...recovery }, 'route');
      for (const resolve of this.#waiting.splice(0)) resolve(recovery);
    } catch (error) {
      const problem = asUnderstudyError(error, 'internal', 'finding out which side leads');
      if (this.#stop.signal.aborted) return;
      if (problem.code !== this.#problem?.code)
        log.error({ code: problem.code, error: problem.message }, 'which side leads is not known');
      this.#problem = problem;
      // A route that was known stays in force: a switch in between would have come through this process.
      if (this.#recovery === undefined && this.#partial === undefined) this.#refuse(clientMessage(problem));
    }
  }

  #servePart(recovery: Recovery, problem: UnderstudyError): void {
    const { log, setRoute, setUnavailable } = this.#deps;
    const before = this.#partial;
    this.#partial = recovery;
    this.#problem = problem;
    for (const { subset, route, unknown } of recovery.subsets ?? []) {
      if (unknown === undefined) setRoute(subset, route);
      else setRoute(subset, route, `subset ${subset} can’t be served: ${clientMessage(problem)}`);
    }
    if (before !== undefined) return;
    setUnavailable(WHOLE_DATABASE, null);
    log.error({ ...recovery, missing: problem.message }, 'of some subsets it is not known which side leads');
  }

  #refuse(message: string): void {
    this.#deps.setUnavailable(WHOLE_DATABASE, { sqlState: CANNOT_CONNECT_NOW, message });
  }

  async #askUntil(answered: () => boolean): Promise<void> {
    const { first, most } = this.#deps.backoffMs ?? { first: 250, most: 5000 };
    for (let delayMs = first; !answered(); delayMs = Math.min(most, delayMs * 2)) {
      try {
        await this.#deps.clock.sleep(delayMs, this.#stop.signal);
      } catch {
        return;
      }
      await this.refresh();
    }
  }
}

/** For clients that have not proved who they are: no host, no account. */
function clientMessage(problem: UnderstudyError): string {
  switch (problem.code) {
    case 'source-unreachable':
      return 'the source database can’t be reached; Understudy keeps trying';
    case 'destination-unreachable':
    case 'route-unknown':
      return 'which database may be written is not known while the destination can’t be reached; Understudy keeps trying';
    default:
      return `Understudy can’t serve yet (${problem.code}); see its log`;
  }
}
