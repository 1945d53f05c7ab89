/** Makes the faults of a plan and takes them back again. */
import { SERVER_SIDES, type ServerSide, type Stage } from './stage.js';
import { LINKS, type Fault, type FaultName, type Link, type LinkFault } from './plan.js';
import { Connection } from './workers.js';
import type { Subject } from './subject.js';
import { NOTE } from './schema.js';

const JUMPS_MS = [-86_400_000, -3_600_000, -5_000, 5_000, 3_600_000, 30 * 86_400_000];
const DDL = [
  'ALTER TABLE public.ledger ADD COLUMN added text',
  'CREATE INDEX chaos_later ON public.transfer (amount)',
  'CREATE TABLE public.chaos_later (id int PRIMARY KEY)',
  'ALTER TABLE public.account ALTER COLUMN balance TYPE numeric',
  'ALTER TABLE public.transfer ADD CONSTRAINT chaos_positive CHECK (amount > 0)',
  'CREATE FUNCTION public.chaos_later() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$',
];
const DDL_TIMEOUT_MS = 5_000;
const SOON_MS = 150;

export class Faults {
  readonly #stage: Stage;
  readonly #subject: Subject;
  readonly #database: string;
  readonly #held: Connection[] = [];
  readonly #killed = new Set<ServerSide>();
  #understudyKilled = false;
  #healing: Promise<void> = Promise.resolve();
  #shifted = false;
  #disturbed = false;
  /** Statements that nobody waits for: they end when what they wait for does. */
  #pending: Promise<unknown>[] = [];
  /** Whether a change of the schema was made. */
  schemaChanged = false;

  constructor(stage: Stage, subject: Subject, database: string) {
    this.#stage = stage;
    this.#subject = subject;
    this.#database = database;
  }

  async make({ name, variant }: Fault): Promise<void> {
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
      case 'long-transaction':
        // Behind a closed gate it can't begin: then it comes when it can.
        await this.#soon(
          this.#hold(this.#stage.linkUrl('client', this.#database), [
            'BEGIN',
            variant % 2 === 0
              ? 'SELECT count(*) FROM ledger'
              : `INSERT INTO ledger (id, note) VALUES (-1, '${NOTE}')`,
          ]),
        );
        return;
      case 'direct-lock': {
        const side: ServerSide = variant % 3 === 0 ? 'destination' : 'source';
        const mode = variant % 2 === 0 ? 'ROW EXCLUSIVE' : 'ACCESS EXCLUSIVE';
        await this.#soon(
          this.#hold(this.#stage.directUrl(side, this.#database), [
            'BEGIN',
            `LOCK TABLE register IN ${mode} MODE`,
          ]),
        );
        return;
      }
      case 'ddl': {
        const side: ServerSide = variant % 4 === 0 ? 'destination' : 'source';
        this.schemaChanged = true;
        await this.#soon(
          this.#stage.asSuperuser(side, this.#database, (client) =>
            client.query(DDL[variant % DDL.length] ?? '', [], DDL_TIMEOUT_MS),
          ),
        );
        return;
      }
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
    if (understudyFirst) await this.#restartUnderstudy();
    for (const side of SERVER_SIDES) {
      if (this.#killed.delete(side)) await this.#stage.servers[side].start();
    }
    await this.#restartUnderstudy();
    if (this.#shifted) this.#subject.shiftClock(0);
    this.#shifted = false;
    await Promise.all(this.#pending.splice(0));
    for (const connection of this.#held.splice(0)) connection.destroy();
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
