/** Makes the faults of a plan and takes them back again. */
import type { Group } from './arrangement.js';
import { comesTrue, finding, probedGroups } from './checks.js';
import { LINKS, type Fault, type FaultName, type Link, type LinkFault } from './plan.js';
import type { Scene } from './scene.js';
import { NOTE, TABLE_OF } from './schema.js';
import { SERVER_SIDES, type ServerSide, type Stage } from './stage.js';
import type { Subject } from './subject.js';
import { Connection } from './workers.js';

const JUMPS_MS = [-86_400_000, -3_600_000, -5_000, 5_000, 3_600_000, 30 * 86_400_000];
const DDL = [
  'ALTER TABLE public.ledger ADD COLUMN added text',
  'CREATE INDEX chaos_later ON public.transfer (amount)',
  'CREATE TABLE public.chaos_later (id int PRIMARY KEY)',
  'ALTER TABLE public.account ALTER COLUMN balance TYPE numeric',
  'ALTER TABLE public.transfer ADD CONSTRAINT chaos_positive CHECK (amount > 0)',
  'CREATE FUNCTION public.chaos_later() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$',
];
/** What the fingerprint of the catalogs has to notice, or the fence to refuse, while nothing but the commit is left. */
const LATE_DDL = [
  'ALTER TABLE public.register ADD COLUMN added text',
  'CREATE TABLE public.chaos_later (id int PRIMARY KEY)',
  'ALTER TABLE public.ledger ADD COLUMN added text',
  'CREATE TABLE decoy.chaos_later (id int PRIMARY KEY REFERENCES decoy.register)',
  'ALTER TABLE public.account ADD CONSTRAINT chaos_named CHECK (id > -5)',
  'ALTER TABLE decoy.register ALTER COLUMN value SET DEFAULT 0',
  'ALTER TABLE public.transfer ADD COLUMN added int DEFAULT 7',
  'CREATE UNIQUE INDEX chaos_later ON public.register (key, value)',
];
const DDL_TIMEOUT_MS = 5_000;
/** One server is silent at least that long after Understudy has started again. */
const AWAY_MS = 1_500;
const SERVED_TIMEOUT_MS = 15_000;
const SOON_MS = 150;

export class Faults {
  readonly #scene: Scene;
  readonly #stage: Stage;
  readonly #subject: Subject;
  readonly #database: string;
  readonly #held: Connection[] = [];
  readonly #killed = new Set<ServerSide>();
  #understudyKilled = false;
  /** Understudy is to start while that server is still down. */
  #away: ServerSide | null = null;
  #healing: Promise<void> = Promise.resolve();
  #shifted = false;
  #disturbed = false;
  /** Statements that nobody waits for: they end when what they wait for does. */
  #pending: Promise<unknown>[] = [];
  /** Whether a change of the schema was made. */
  schemaChanged = false;

  constructor(scene: Scene) {
    this.#scene = scene;
    this.#stage = scene.stage;
    this.#subject = scene.subject;
    this.#database = scene.database;
  }

  /** `subset`: which of the arrangement's the act is about; what locks a table locks one of its. */
  async make({ name, variant }: Fault, subset: number): Promise<void> {
    const link = asLinkFault(name);
    if (link !== null) {
      this.#disturbed = true;
      await this.#stage.disturb(link[0], link[1], variant);
      return;
    }
    switch (name) {
      case 'none':
        return;
      case 'kill-understudy':
        this.#understudyKilled = true;
        await this.#subject.kill();
        return;
      case 'kill-source':
        await this.#killServer('source', variant);
        return;
      case 'kill-destination':
        await this.#killServer('destination', variant);
        return;
      case 'disk-full':
        this.#stage.disk?.fill();
        return;
      case 'clock-jump':
        this.#shifted = true;
        this.#subject.shiftClock(JUMPS_MS[variant % JUMPS_MS.length] ?? 0);
        return;
      case 'restart-without-source':
        await this.#killBoth('source', variant);
        return;
      case 'restart-without-destination':
        await this.#killBoth('destination', variant);
        return;
      case 'kill-worker':
        await this.#killWorker(variant);
        return;
      case 'long-transaction':
        await this.#longTransaction(variant, this.#groupOf(subset, 'ledger'));
        return;
      case 'direct-lock': {
        const side: ServerSide = variant % 3 === 0 ? 'destination' : 'source';
        const mode = variant % 2 === 0 ? 'ROW EXCLUSIVE' : 'ACCESS EXCLUSIVE';
        await this.#soon(
          this.#hold(this.#stage.directUrl(side, this.#database), [
            'BEGIN',
            `LOCK TABLE ${TABLE_OF[this.#groupOf(subset, 'register')]} IN ${mode} MODE`,
          ]),
        );
        return;
      }
      case 'ddl':
        await this.#changeSchema(DDL, variant);
        return;
      case 'ddl-late':
        await this.#changeSchema(LATE_DDL, variant);
        return;
      case 'connections-full-source':
        await this.#fillConnections('source', variant);
        return;
      case 'connections-full-destination':
        await this.#fillConnections('destination', variant);
        return;
      default:
        throw new Error(`unknown fault ${name}`);
    }
  }

  /** One of its tables; the fallback's where there are no subsets. */
  #groupOf(subset: number, fallback: Group): Group {
    const { arrangement, several } = this.#scene;
    const name = arrangement.subsets[subset];
    const [, group] = probedGroups(arrangement).find(([each]) => each === name) ?? [];
    return several && group !== undefined ? group : fallback;
  }

  /** Behind a closed gate it can't begin: then it comes when it can. */
  async #longTransaction(variant: number, group: Group): Promise<void> {
    const write =
      group === 'ledger'
        ? `INSERT INTO ledger (id, note) VALUES (-1, '${NOTE}')`
        : `LOCK TABLE ${TABLE_OF[group]} IN ROW EXCLUSIVE MODE`;
    const statements = ['BEGIN', variant % 2 === 0 ? `SELECT count(*) FROM ${TABLE_OF[group]}` : write];
    await this.#soon(this.#hold(this.#stage.linkUrl('client', this.#database), statements));
  }

  async #changeSchema(statements: readonly string[], variant: number): Promise<void> {
    const side: ServerSide = variant % 4 === 0 ? 'destination' : 'source';
    this.schemaChanged = true;
    await this.#soon(
      this.#stage.asSuperuser(side, this.#database, (client) =>
        client.query(statements[variant % statements.length] ?? '', [], DDL_TIMEOUT_MS),
      ),
    );
  }

  async #killBoth(side: ServerSide, variant: number): Promise<void> {
    this.#away = side;
    this.#understudyKilled = true;
    await this.#subject.kill();
    await this.#killServer(side, variant);
  }

  async #killWorker(variant: number): Promise<void> {
    const workers = (await this.#subject.status())?.proxy.workers ?? [];
    const worker = workers[variant % Math.max(1, workers.length)];
    if (worker !== undefined) process.kill(worker.pid, 'SIGKILL');
  }

  async #killServer(side: ServerSide, variant: number): Promise<void> {
    this.#killed.add(side);
    await this.#stage.servers[side].stop(variant % 2 === 0 ? 'SIGKILL' : 'SIGQUIT');
  }

  /** Statements that stay unfinished until the fault is over. */
  async #hold(url: string, statements: readonly string[]): Promise<void> {
    const connection = await Connection.open(url, 2_000);
    this.#held.push(connection);
    for (const statement of statements) await connection.query(statement, [], 30_000);
  }

  async #fillConnections(side: ServerSide, variant: number): Promise<void> {
    // Understudy's own account may use the reserved ones, too.
    const url =
      variant % 2 === 0
        ? this.#stage.servers[side].url('postgres')
        : this.#stage.directUrl(side, this.#database);
    for (let opened = 0; opened < 100; opened++) {
      try {
        this.#held.push(await Connection.open(url, 2_000));
      } catch {
        return;
      }
    }
  }

  /** Waits for it a moment; what waits for a lock may take until the fault is over. */
  async #soon(promise: Promise<unknown>): Promise<void> {
    const settled = promise.catch(() => undefined);
    this.#pending.push(settled);
    await Promise.race([settled, new Promise((resolve) => setTimeout(resolve, SOON_MS))]);
  }

  /** Takes everything back. Understudy, where it was killed, is started before or after the servers. One at a time. */
  heal(restartAfterMs: number, understudyFirst: boolean): Promise<void> {
    const healed = this.#healing.then(() => this.#heal(restartAfterMs, understudyFirst));
    this.#healing = healed.catch(() => undefined);
    return healed;
  }

  async #heal(restartAfterMs: number, understudyFirst: boolean): Promise<void> {
    for (const connection of this.#held.splice(0)) connection.destroy();
    this.#stage.disk?.free();
    if (this.#disturbed) await this.#stage.calm();
    this.#disturbed = false;
    if (this.#understudyKilled || this.#killed.size > 0) {
      await new Promise((resolve) => setTimeout(resolve, restartAfterMs));
    }
    if (understudyFirst || this.#away !== null) await this.#restartUnderstudy();
    if (this.#away !== null) await this.#checkAway(this.#away);
    this.#away = null;
    for (const side of SERVER_SIDES) {
      if (this.#killed.delete(side)) await this.#stage.servers[side].start();
    }
    await this.#restartUnderstudy();
    if (this.#shifted) this.#subject.shiftClock(0);
    this.#shifted = false;
    await Promise.all(this.#pending.splice(0));
    for (const connection of this.#held.splice(0)) connection.destroy();
  }

  /** While one server is silent, what the other one leads for certain is served. */
  async #checkAway(away: ServerSide): Promise<void> {
    const scene = this.#scene;
    const groups = new Map(probedGroups(scene.arrangement));
    const others = scene.several ? scene.settledOn(away === 'source' ? 'destination' : 'source') : [];
    const silent = new Promise((resolve) => setTimeout(resolve, AWAY_MS));
    for (const subset of others) {
      const table = TABLE_OF[groups.get(subset) ?? 'ledger'];
      const served = await comesTrue(
        () => scene.newcomerServed(`SELECT count(*) FROM ${table}`),
        scene.patient(SERVED_TIMEOUT_MS),
      );
      if (!served) scene.found(finding('not-served', `${subset}, while the ${away} was away`));
    }
    await silent;
  }

  async #restartUnderstudy(): Promise<void> {
    if (!this.#understudyKilled) return;
    await this.#subject.ended();
    this.#understudyKilled = false;
    await this.#subject.start();
  }
}

export function asLinkFault(name: FaultName): readonly [Link, LinkFault] | null {
  const link = LINKS.find((each) => name.startsWith(`${each}-`));
  return link === undefined ? null : [link, name.slice(link.length + 1) as LinkFault];
}
