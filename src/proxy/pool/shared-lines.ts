/** The shared connections of one pool: opened as they are needed, looked after, replaced when they age. */
import { asUnderstudyError } from '../../core/errors.js';
import type { Backend } from '../backend/backend.js';
import type { PoolContext } from './pool-context.js';
import type { PoolStatus } from './pool-settings.js';
import { SharedLine, type SharedCounts } from './shared-line.js';

interface Held {
  readonly line: SharedLine;
  readonly backend: Backend;
  readonly openedAtMs: number;
  usedAtMs: number;
}

export class SharedLines {
  readonly #context: PoolContext;
  readonly #open: (beyond: boolean) => Promise<Backend> | null;
  #held: Held[] = [];
  #opening = 0;
  #retired = false;
  /** After a failure, none is opened for a while. */
  #notBeforeMs = 0;
  readonly #counts: SharedCounts = { statements: 0, sentAgain: 0, refused: 0 };
  #looks: NodeJS.Timeout | undefined;

  /** `open`: null where there is no room for another connection. */
  constructor(context: PoolContext, open: (beyond: boolean) => Promise<Backend> | null) {
    this.#context = context;
    this.#open = open;
  }

  get count(): number {
    return this.#held.length;
  }

  status(obstacle: string | null): PoolStatus['shared'] {
    return {
      connections: this.#held.length,
      depth: this.#held.reduce((sum, { line }) => sum + line.depth, 0),
      ...this.#counts,
      obstacle,
    };
  }

  /** The one with the least under way; null where there is none that takes a read. `empty`: with nothing. */
  pick(empty: boolean): SharedLine | null {
    let best: Held | null = null;
    let depth = Infinity;
    let open = 0;
    for (const held of this.#held) {
      if (!held.line.open) continue;
      open += 1;
      if (held.line.depth >= depth) continue;
      best = held;
      depth = held.line.depth;
    }
    if (open + this.#opening < this.#context.bounds.sharedConnections) this.#more();
    return empty && depth > 0 ? null : (best?.line ?? null);
  }

  /** Blocked ones may last: as many again are opened beside them. */
  #more(): void {
    const { bounds, clock } = this.#context;
    const nowMs = clock.monotonicMs();
    if (this.#retired || this.#held.length + this.#opening >= 2 * bounds.sharedConnections) return;
    if (nowMs < this.#notBeforeMs) return;
    const opening = this.#open(false);
    if (opening === null) {
      this.#notBeforeMs = nowMs + RETRY_MS;
      return;
    }
    this.#add(opening).catch((error: unknown) => {
      this.#notBeforeMs = nowMs + RETRY_MS;
      const { message } = asUnderstudyError(error, 'internal', 'opening');
      this.#context.log.warn({ error: message }, 'a shared connection could not be opened');
    });
  }

  /** One more, for a switch. */
  async warm(): Promise<void> {
    const opening = this.#open(true);
    if (opening !== null) await this.#add(opening);
  }

  /** Since when the one used longest ago has had nothing under way; null: there is none such. */
  get idleSinceMs(): number | null {
    const idle = this.#idle();
    return idle === null ? null : idle.usedAtMs;
  }

  /** Closes that one, after `leaving`; none is opened in its place for a while. */
  giveUpIdle(leaving: (backend: Backend) => void): void {
    const idle = this.#idle();
    if (idle === null) return;
    this.#notBeforeMs = this.#context.clock.monotonicMs() + RETRY_MS;
    leaving(idle.backend);
    idle.line.close();
  }

  #idle(): Held | null {
    let longest: Held | null = null;
    for (const held of this.#held) {
      if (!held.line.open || held.line.depth > 0) continue;
      if (held.usedAtMs < (longest?.usedAtMs ?? Infinity)) longest = held;
    }
    return longest;
  }

  async #add(opening: Promise<Backend>): Promise<void> {
    this.#opening += 1;
    try {
      const backend = await opening;
      const nowMs = this.#context.clock.monotonicMs();
      const line = new SharedLine(backend, {
        context: this.#context,
        counts: this.#counts,
        onEnded: (ended) => {
          this.#held = this.#held.filter((held) => held.line !== ended);
        },
      });
      this.#held.push({ line, backend, openedAtMs: nowMs, usedAtMs: nowMs });
      if (this.#retired) line.close();
      this.#look();
    } finally {
      this.#opening -= 1;
    }
  }

  /** A few looks within the bound on how long a read may take. */
  #look(): void {
    if (this.#looks !== undefined) return;
    const everyMs = Math.max(1, this.#context.bounds.sharedReadBoundMs / 4);
    this.#looks = setInterval(() => {
      const nowMs = this.#context.clock.monotonicMs();
      for (const held of this.#held) {
        if (held.line.depth > 0) held.usedAtMs = nowMs;
        held.line.look(nowMs);
      }
      if (this.#held.length > 0) return;
      clearInterval(this.#looks);
      this.#looks = undefined;
    }, everyMs);
    this.#looks.unref();
  }

  /** Call now and then. */
  sweep(nowMs: number, idleMaxMs: number): void {
    const { poolAgeMaxMs } = this.#context.bounds;
    for (const { line, openedAtMs, usedAtMs } of this.#held) {
      if (nowMs - usedAtMs >= idleMaxMs || nowMs - openedAtMs >= poolAgeMaxMs) line.close();
    }
  }

  retire(): void {
    this.#retired = true;
    for (const { line } of this.#held) line.close();
  }
}

const RETRY_MS = 1000;
