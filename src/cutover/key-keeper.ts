/**
 * Keeps the foreign keys between subsets as who leads what wants them (foreign-keys.ts): out while the two sides of a key
 * are parted, back and validated once they have met.
 *
 * It looks at the state of both servers and goes on from there, so a process that died leaves nothing that the next one does
 * not mend. When it acts:
 *   - in an operation, after its commit and before its gate opens: clients that are held write under neither too many keys
 *     nor too few. Bounded: what can't be locked by then is tried again in the background, and named in the report
 *   - at the start, before anything is served
 *   - in the background: what is left, and validation, which takes as long as reading the tables
 *   - before `finalize` and `remove`, which wait for all of it
 *
 * Invariants:
 * - Nothing is dropped before the operation that parts its subsets has committed: an abort has nothing to put back.
 * - Where it is not known who leads one of a key's subsets, the key is left as it is.
 * - While an operation runs nothing is validated: that takes a lock which a barrier would wait for. What is under way is
 *   cancelled, on its server.
 * - Each side by itself: one that can't be reached keeps nothing from the other.
 */
import type { Clock } from '../core/clock.js';
import { UnderstudyError, asUnderstudyError, unreachable } from '../core/errors.js';
import type { Log } from '../core/log.js';
import type { Finding, Side, SubsetId, SubsetRules } from '../core/ports.js';
import { quoteTable } from '../core/postgres.js';
import type { BarrierLimits } from './barrier-locks.js';
import {
  createKeyRecords,
  dropKey,
  forgetKey,
  openKeySide,
  readCrossingKeys,
  restoreKey,
  validateKey,
  validateSql,
  type CrossingKey,
  type KeySide,
} from './foreign-keys.js';
import type { Connections, Session } from './session.js';
import type { CutoverSettings, ForeignKeyStatus } from './settings.js';

const SIDES = ['source', 'destination'] as const;
const CANCEL_POLL_MS = 20;
const RETRY_MIN_MS = 500;
const RETRY_MAX_MS = 30_000;

/** Who leads each subset; those of which it is not known are not among them. */
export type Sides = ReadonlyMap<SubsetId, Side>;

export interface KeyKeeperDeps {
  readonly rules: readonly SubsetRules[];
  readonly connections: Connections;
  readonly clock: Clock;
  readonly log: Log;
  readonly settings: CutoverSettings;
  readonly closing: AbortSignal;
}

type Purpose = 'act' | 'look';

interface Ready {
  readonly side: KeySide;
  readonly keys: readonly CrossingKey[];
}

interface Validating {
  readonly session: Session;
  readonly pid: string;
}

export class KeyKeeper {
  readonly #deps: KeyKeeperDeps;
  /** Apart from those that act, whose transactions nothing may come into. */
  readonly #sessions = new Map<`${Purpose} ${Side}`, Session>();
  /** There is a policy, or a record of a former configuration's. */
  #concerned: boolean;
  #sides: Sides = new Map();
  #serial: Promise<unknown> = Promise.resolve();
  #background: { readonly stop: AbortController; readonly ended: Promise<void> } | undefined;
  /** Read before an operation, so that nothing is asked behind its gate. */
  readonly #ready = new Map<Side, Ready>();
  /** How often {@link resume} was asked for: what is under way may have looked before. */
  #wanted = 0;
  /** Busy with a validation, with its process id on the server. */
  #validating: Validating | undefined;

  constructor(deps: KeyKeeperDeps) {
    this.#deps = deps;
    this.#concerned = deps.rules.some(({ foreignKeys }) => foreignKeys === 'unenforced');
  }

  get concerned(): boolean {
    return this.#concerned;
  }

  /** Once both servers can be asked: whether a former configuration left anything, and room for records where one may come. */
  async install(): Promise<void> {
    const looked = this.#serial.then(() => this.#makeRoom());
    this.#serial = looked.catch(() => undefined);
    await looked;
    if (!this.#concerned) await this.#endSessions();
    else if (this.#background === undefined) await this.#begin();
  }

  async #makeRoom(): Promise<void> {
    for (const side of SIDES) {
      const session = await this.#session('act', side);
      if (this.#concerned) await createKeyRecords(session);
      else this.#concerned = (await readCrossingKeys(session, this.#deps.rules)).length > 0;
    }
  }

  /** Before anything is served: what can be done at once is, and the rest goes on in the background. */
  async found(sides: Sides): Promise<void> {
    const same =
      sides.size === this.#sides.size &&
      [...sides].every(([subset, side]) => this.#sides.get(subset) === side);
    this.#sides = sides;
    if (this.#concerned && !same) await this.#begin();
  }

  /** Behind the gate, once the operation has committed. Never throws: returns what is left, which {@link resume} goes on with. */
  moved(subsets: readonly SubsetId[], to: Side): Promise<readonly Finding[]> {
    this.#sides = new Map([...this.#sides, ...subsets.map((subset) => [subset, to] as const)]);
    return this.#settle();
  }

  /** Before an operation: nothing is under way afterwards, and the connections are open. */
  async pause(): Promise<void> {
    await this.#halt();
    if (!this.#concerned) return;
    await Promise.all(
      SIDES.map(async (side) => {
        const ready = await this.#makeReady(side).catch(() => undefined);
        if (ready !== undefined) this.#ready.set(side, ready);
      }),
    );
  }

  async #makeReady(side: Side): Promise<Ready> {
    const { rules, settings } = this.#deps;
    const session = await this.#session('act', side);
    const keys = await readCrossingKeys(session, rules);
    return { side: await openKeySide(session, settings.lockTimeoutMs), keys };
  }

  resume(): void {
    this.#ready.clear();
    this.#wanted += 1;
    if (!this.#concerned || this.#background !== undefined || this.#deps.closing.aborted) return;
    const stop = new AbortController();
    const signal = AbortSignal.any([stop.signal, this.#deps.closing]);
    this.#background = { stop, ended: this.#goOn(signal).catch(() => undefined) };
  }

  async #begin(): Promise<void> {
    await this.#settle();
    this.resume();
  }

  /** Drops and restores what the sides want, within `fenceTimeoutMs`. Never throws: returns what is left to do. */
  #settle(): Promise<readonly Finding[]> {
    if (!this.#concerned) return Promise.resolve([]);
    const settled = this.#serial.then(async () =>
      (await Promise.all(SIDES.map((side) => this.#settleSide(side)))).flat(),
    );
    this.#serial = settled.catch(() => undefined);
    return settled;
  }

  async #settleSide(side: Side): Promise<readonly Finding[]> {
    const { clock, settings, closing, log, rules } = this.#deps;
    const deadline = clock.monotonicMs() + settings.fenceTimeoutMs;
    const left: Finding[] = [];
    try {
      const ready = this.#ready.get(side);
      this.#ready.delete(side);
      const known = ready?.side.session.dead === false ? ready : undefined;
      const session = known?.side.session ?? (await this.#session('act', side));
      const keys = known?.keys ?? (await readCrossingKeys(session, rules));
      let open = known?.side;
      for (const key of keys) {
        const what = wanted(key, this.#sides);
        if (what === null) continue;
        open ??= await openKeySide(session, settings.lockTimeoutMs);
        const limits: BarrierLimits = {
          clock,
          signal: closing,
          lockTimeoutMs: settings.lockTimeoutMs,
          // Each has its chance, however long the ones before it took.
          timeoutMs: Math.max(2 * settings.lockTimeoutMs, Math.ceil(deadline - clock.monotonicMs())),
        };
        try {
          await act(what, open, key, limits);
          log.info({ side, key: nameOf(key) }, DONE[what]);
        } catch (error) {
          left.push(this.#leftOver(side, nameOf(key), error));
        }
      }
    } catch (error) {
      left.push(this.#leftOver(side, 'foreign keys', error));
    }
    return left;
  }

  #leftOver(side: Side, object: string, error: unknown): Finding {
    const { code, message } = asUnderstudyError(error, 'internal', 'foreign keys');
    this.#deps.log.warn({ side, object, code, reason: message }, 'a foreign key is not yet as it is to be');
    return {
      severity: 'warning',
      check: 'foreign-key-left',
      side,
      object,
      message: `is not yet as who leads what wants it (${message}); it is tried again`,
      advice:
        'Let transactions end that use its two tables past Understudy; `understudy status` shows the key.',
    };
  }

  async #goOn(signal: AbortSignal): Promise<void> {
    const { clock } = this.#deps;
    for (let waitMs = RETRY_MIN_MS; ; waitMs = Math.min(waitMs * 2, RETRY_MAX_MS)) {
      const wanted = this.#wanted;
      const left = await this.#settle();
      const unread = await this.#validateAll(signal);
      if (left.length === 0 && unread === 0 && wanted === this.#wanted) {
        if (!signal.aborted) this.#background = undefined;
        return;
      }
      await clock.sleep(waitMs, signal);
    }
  }

  /** Everything that has met, on the sides that can be asked; how many could not be. */
  async #validateAll(signal: AbortSignal): Promise<number> {
    let failed = 0;
    for (const side of SIDES) {
      try {
        const keys = await readCrossingKeys(await this.#session('look', side), this.#deps.rules);
        for (const key of keys) {
          signal.throwIfAborted();
          if (key.state === 'restored') await this.#validate(side, key, signal);
        }
      } catch (error) {
        signal.throwIfAborted();
        const { code, message } = asUnderstudyError(error, 'internal', 'foreign keys');
        this.#deps.log.warn(
          { side, code, reason: message },
          'a foreign key could not be validated; it is tried again',
        );
        failed++;
      }
    }
    return failed;
  }

  async #validate(side: Side, key: CrossingKey, signal: AbortSignal): Promise<void> {
    const { connections, log } = this.#deps;
    const session = await connections.open(side, 'validate');
    try {
      const backend = await session.run('SELECT pg_catalog.pg_backend_pid() AS pid');
      this.#validating = { session, pid: backend.rows[0]?.['pid'] ?? '' };
      signal.throwIfAborted();
      const violations = await validateKey(session, key);
      const told = { side, key: nameOf(key), table: quoteTable(key.table) };
      if (violations === null) log.info(told, 'a foreign key is enforced again, for all rows');
      else
        log.warn(
          { ...told, ...violations },
          'rows violate a foreign key since its subsets were on different sides',
        );
    } finally {
      this.#validating = undefined;
      await session.end();
    }
  }

  async #halt(): Promise<void> {
    const { stop, ended } = this.#background ?? {};
    this.#background = undefined;
    stop?.abort(new UnderstudyError('cancelled', 'an operation begins'));
    if (ended === undefined) return;
    const over = ended.then(() => true);
    for (;;) {
      const validating = this.#validating;
      if (validating === undefined) break;
      await this.#cancel(validating);
      // It may have been between two statements.
      if (await Promise.race([over, this.#deps.clock.sleep(CANCEL_POLL_MS)])) break;
    }
    await ended;
  }

  /** By its server: a lock outlives the connection it was asked for over, for as long as the statement runs. */
  async #cancel({ session, pid }: Validating): Promise<void> {
    try {
      const other = await this.#session('look', session.side);
      await other.run('SELECT pg_catalog.pg_cancel_backend($1)', [pid]);
    } catch {
      session.destroy();
    }
  }

  /**
   * For `finalize` and `remove`, which drop the records: everything put back and validated on those sides, now. Returns
   * sentences about what stays NOT VALID. Throws what keeps a key from being put back.
   */
  async finish(sides: readonly Side[]): Promise<readonly string[]> {
    await this.#halt();
    if (!this.#concerned) return [];
    const { rules, closing } = this.#deps;
    await this.#settle();
    const told: string[] = [];
    for (const side of sides) {
      const session = await this.#session('act', side);
      for (const key of await readCrossingKeys(session, rules)) {
        if (key.state === 'unenforced') throw notRestored(side, key);
        if (key.state === 'restored') await this.#validate(side, key, closing);
      }
      for (const { state, record, ...key } of await readCrossingKeys(session, rules)) {
        if (state !== 'restored') continue;
        const { rows = 0, keys = 0 } = record?.violations ?? {};
        told.push(
          `${side}: ${key.name} on ${quoteTable(key.table)} stays NOT VALID: ${rows} rows refer to ${keys} keys that are not there`,
        );
      }
    }
    this.#concerned = false;
    return told;
  }

  /** Undefined where there are none. Never throws: a side that can't be asked is `unknown`. */
  async status(): Promise<readonly ForeignKeyStatus[] | undefined> {
    if (!this.#concerned) return undefined;
    const read = await Promise.all(
      SIDES.map(async (side) => {
        const session = await this.#session('look', side);
        return await readCrossingKeys(session, this.#deps.rules);
      }).map((reading) => reading.catch(() => null)),
    );
    const [source, destination] = read;
    const all = new Map((source ?? destination ?? []).map((key) => [idOf(key), key]));
    for (const key of destination ?? []) if (!all.has(idOf(key))) all.set(idOf(key), key);
    const on = (keys: readonly CrossingKey[] | null | undefined, id: string): ForeignKeyStatus['source'] => {
      const found = keys?.find((key) => idOf(key) === id);
      if (found === undefined) return { state: keys == null ? 'unknown' : 'absent' };
      const { state, record } = found;
      return {
        state,
        ...(state === 'enforced' || record === null ? {} : { since: record.since }),
        ...(state === 'restored' && record?.violations != null
          ? { violations: record.violations, validate: validateSql(found) }
          : {}),
      };
    };
    return [...all].map(([id, { name, table, references, subsets }]) => ({
      name,
      table: `${table.schema}.${table.name}`,
      references: `${references.schema}.${references.name}`,
      subsets,
      source: on(source, id),
      destination: on(destination, id),
    }));
  }

  async close(): Promise<void> {
    await this.#halt();
    await this.#endSessions();
  }

  async #endSessions(): Promise<void> {
    await Promise.all([...this.#sessions.values()].map((session) => session.end()));
    this.#sessions.clear();
  }

  async #session(purpose: Purpose, side: Side): Promise<Session> {
    const open = this.#sessions.get(`${purpose} ${side}`);
    if (open !== undefined && !open.dead) return open;
    const { connections, settings } = this.#deps;
    const session = await connections.open(side, `foreign keys ${purpose}`, {
      answerTimeoutMs: settings.connectTimeoutMs + settings.fenceTimeoutMs,
    });
    this.#sessions.set(`${purpose} ${side}`, session);
    return session;
  }
}

type Act = 'drop' | 'restore' | 'forget';

/** Null where it is as it is to be, or where it is not known what it is to be. */
function wanted(key: CrossingKey, sides: Sides): Act | null {
  const [child, parent] = key.subsets.map((subset) => sides.get(subset));
  if (child === undefined || parent === undefined) return null;
  if (child !== parent) return key.state === 'unenforced' ? null : 'drop';
  if (key.record === null || key.state === 'restored') return null;
  return key.state === 'enforced' ? 'forget' : 'restore';
}

async function act(what: Act, side: KeySide, key: CrossingKey, limits: BarrierLimits): Promise<void> {
  switch (what) {
    case 'drop':
      await dropKey(side, key, limits);
      return;
    case 'restore':
      if (key.record !== null) await restoreKey(side, key, key.record, limits);
      return;
    case 'forget':
      await forgetKey(side.session, key);
      return;
    default:
      unreachable(what);
  }
}

const DONE: Readonly<Record<Act, string>> = {
  drop: 'a foreign key is not enforced while its subsets are on different sides',
  restore: 'a foreign key is enforced again for what is written from now on',
  forget: 'a foreign key is enforced again, for all rows',
};

function nameOf({ name, table }: CrossingKey): string {
  return `${name} on ${table.schema}.${table.name}`;
}

function idOf({ name, table }: CrossingKey): string {
  return `${quoteTable(table)} ${name}`;
}

function notRestored(side: Side, key: CrossingKey): UnderstudyError {
  return new UnderstudyError(
    'fence-timeout',
    `${side}: the foreign key ${nameOf(key)} could not be put back`,
    {
      advice:
        'Let transactions end that use its two tables, and try again; `understudy status` shows the key.',
    },
  );
}
