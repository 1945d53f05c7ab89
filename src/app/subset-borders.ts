/**
 * What ties the configured subsets, for `status`: read in the thread that reads statements, and kept. Asked often, so that
 * what is older than {@link FRESH_MS} is handed out and read anew beside it.
 */
import type pg from 'pg';
import { asUnderstudyError } from '../core/errors.js';
import type { Clock } from '../core/clock.js';
import type { Log } from '../core/log.js';
import type { SubsetRules } from '../core/ports.js';
import type { SubsetBorder, SubsetBorders } from '../core/subset-ports.js';
import { crossingPolicy, readSubsetTables } from '../core/subsets.js';
import { crossingsOf, readTablePairs } from './crossing.js';

const FRESH_MS = 30_000;
/** A first question waits that long for an answer. */
const FIRST_WAIT_MS = 2_000;

export interface SubsetBordersDeps {
  readonly rules: readonly SubsetRules[];
  readonly clock: Clock;
  readonly log: Log;
  /** Reads the catalogs, elsewhere. */
  readonly read: () => Promise<Pick<SubsetBorders, 'borders' | 'unknown'>>;
  /** Runs an errand on both databases. */
  readonly onBoth: <T>(errand: (source: pg.Client, destination: pg.Client) => Promise<T>) => Promise<T>;
}

export class BordersKept {
  readonly #deps: SubsetBordersDeps;
  #known: SubsetBorders | undefined;
  #readAtMs = -Infinity;
  #reading: Promise<void> | undefined;

  constructor(deps: SubsetBordersDeps) {
    this.#deps = deps;
  }

  /** Null where they are not known yet. Never throws. */
  async latest(): Promise<SubsetBorders | null> {
    const { clock } = this.#deps;
    if (clock.monotonicMs() - this.#readAtMs > FRESH_MS) {
      this.#reading ??= this.#read().finally(() => (this.#reading = undefined));
      if (this.#known === undefined) await Promise.race([this.#reading, clock.sleep(FIRST_WAIT_MS)]);
    }
    return this.#known ?? null;
  }

  async #read(): Promise<void> {
    const { clock, log, rules } = this.#deps;
    try {
      const { borders, unknown } = await this.#deps.read();
      const transactions = await this.#transactions().catch(() => null);
      const counted = new Map(borders.map((border) => [border.subsets.join(' '), border]));
      for (const { subsets, low, high } of transactions ?? []) {
        const key = subsets.join(' ');
        const known = counted.get(key) ?? { subsets, ties: [], crossing: crossingPolicy(rules, ...subsets) };
        counted.set(key, { ...known, transactions: { low, high } });
      }
      const captured = transactions !== null;
      this.#known = { asOf: clock.now().toISOString(), borders: [...counted.values()], captured, unknown };
      this.#readAtMs = clock.monotonicMs();
    } catch (error) {
      const { code, message } = asUnderstudyError(error, 'internal', 'ties');
      log.debug({ code, reason: message }, 'what ties the subsets could not be read');
    }
  }

  /** Null where nothing was captured. */
  #transactions(): Promise<
    | readonly { readonly subsets: SubsetBorder['subsets']; readonly low: number; readonly high: number }[]
    | null
  > {
    return this.#deps.onBoth(async (source, destination) => {
      const pairs = await readTablePairs(destination);
      if (pairs === null) return null;
      return crossingsOf(pairs, await readSubsetTables(source, this.#deps.rules)).map(
        ({ one, other, most, total }) => ({
          subsets: [one, other] as const,
          low: Math.round(most.transactions),
          high: Math.round(total),
        }),
      );
    });
  }
}
