/**
 * What all parts of one run share: its databases, the Understudy under test, the clients and what they were told, who leads
 * what, and what was found so far.
 */
import type { StatusReport } from '../../src/admin/control.js';
import type { OperationKind } from '../../src/core/ports.js';
import type { Route } from '../../src/core/traffic-ports.js';
import { ARRANGEMENTS, type Arrangement } from './arrangement.js';
import type { Led } from './audit-sides.js';
import { comesTrue, finding, type Finding, type Writable } from './checks.js';
import { CROSSING, crewOf } from './crew.js';
import { History } from './history.js';
import type { Plan } from './plan.js';
import type { ServerSide, Stage } from './stage.js';
import type { Subject } from './subject.js';
import { Connection, type Worker } from './workers.js';

const FOLLOW_TIMEOUT_MS = 60_000;
const PROGRESS_TIMEOUT_MS = 20_000;

export interface ActReport {
  readonly kind: OperationKind;
  readonly subset?: string;
  readonly outcome: string;
  readonly faults: readonly string[];
  /** Faults whose point was never reached. */
  readonly missed: readonly string[];
  readonly stallMaxMs: number;
  readonly steps: Readonly<Record<string, number>>;
}

export class Scene {
  readonly stage: Stage;
  readonly plan: Plan;
  readonly database: string;
  readonly subject: Subject;
  readonly arrangement: Arrangement;
  readonly history: History;
  readonly workers: readonly Worker[];
  readonly findings: Finding[] = [];
  readonly acts: ActReport[] = [];
  /** Milliseconds since the run began at which each of its parts was done. */
  readonly parts: Record<string, number> = {};
  /** For how long each side led what, as far as it is certain. */
  readonly led: Led[] = [];
  /** Who leads a subset on which nothing is under way, and since when. */
  readonly #settled = new Map<string, { readonly side: ServerSide; readonly fromMs: number }>();

  constructor(stage: Stage, plan: Plan, database: string, subject: Subject) {
    this.stage = stage;
    this.plan = plan;
    this.database = database;
    this.subject = subject;
    this.arrangement = ARRANGEMENTS[plan.subsets];
    this.history = new History(this.arrangement, (port) =>
      port === stage.servers.source.port ? 'source' : 'destination',
    );
    this.workers = crewOf(plan, stage, database, this.history);
  }

  /** As much longer as everything may take here. */
  patient(ms: number): number {
    return ms * this.stage.patience;
  }

  done(part: string): void {
    this.parts[part] = Math.round(this.history.nowMs());
  }

  found(...findings: readonly Finding[]): void {
    this.findings.push(...findings);
  }

  get several(): boolean {
    return this.plan.subsets > 0;
  }

  routeOf(status: StatusReport | null, subset: string): Route | null {
    if (!this.several) return status?.route ?? null;
    return status?.cutover?.subsets?.find((each) => each.subset === subset)?.route ?? null;
  }

  /** The routes of the other subsets, which no operation on this one may change. */
  otherRoutes(status: StatusReport | null, subset: string): string {
    const others = this.arrangement.subsets.filter((each) => each !== subset);
    return JSON.stringify(others.map((each) => [each, this.routeOf(status, each)]));
  }

  /** From then on, until an operation on them begins, these lead. */
  settledSince(fromMs: number, leads: Writable): void {
    for (const [subset, [side]] of leads) {
      if (side !== undefined && !this.#settled.has(subset)) this.#settled.set(subset, { side, fromMs });
    }
  }

  unsettled(subsets: readonly string[]): void {
    const toMs = this.history.nowMs();
    for (const subset of subsets) {
      const since = this.#settled.get(subset);
      if (since !== undefined) this.led.push({ subset, ...since, toMs });
      this.#settled.delete(subset);
    }
  }

  /** Subsets that this side leads, with nothing under way on them. */
  settledOn(side: ServerSide): readonly string[] {
    return [...this.#settled].filter(([, settled]) => settled.side === side).map(([subset]) => subset);
  }

  async following(): Promise<boolean> {
    let last: StatusReport | null = null;
    const follows = await comesTrue(async () => {
      last = await this.subject.status();
      const shadow = last?.shadow;
      return shadow?.phase === 'following' && shadow.streams.every((stream) => stream.connected);
    }, this.patient(FOLLOW_TIMEOUT_MS));
    if (!follows)
      this.found(
        finding('shadow-does-not-follow', JSON.stringify((last as StatusReport | null)?.shadow ?? null)),
      );
    return follows;
  }

  /** Every client has done something it had begun after this moment, and so does one that comes now. */
  async progress(when: string): Promise<boolean> {
    const sinceMs = this.history.nowMs();
    const waiting = (): readonly string[] =>
      this.workers
        .map(({ name }) => name)
        // Refused while the sides differ; it has an audit of its own.
        .filter((name) => name !== CROSSING)
        .filter((name) => (this.history.lastSuccessMs.get(name) ?? -1) <= sinceMs);
    const newcomer = comesTrue(
      () => this.newcomerServed('SELECT count(*) AS n FROM account'),
      this.patient(PROGRESS_TIMEOUT_MS),
    );
    const all = await comesTrue(() => waiting().length === 0, this.patient(PROGRESS_TIMEOUT_MS));
    if (!(await newcomer)) this.found(finding('stuck', `${when}: no new client is served`));
    if (!all) this.found(finding('stuck', `${when}: ${waiting().join(', ')}`));
    return this.findings.length === 0;
  }

  /** Whether a client that comes now gets a row of that query. */
  async newcomerServed(query: string): Promise<boolean> {
    try {
      const connection = await Connection.open(this.stage.linkUrl('client', this.database));
      try {
        const { rows } = await connection.query(query);
        return rows.length === 1;
      } finally {
        connection.destroy();
      }
    } catch {
      return false;
    }
  }
}
