/**
 * A seeded application whose truth is known: six modules of three tables, a weekly cycle, hot keys by Zipf that drift, a
 * tenant that is onboarded, a flash crowd, a nightly batch job. Gives transactions with their SQL, keys and writes.
 */
import { normal, seededRandom, type Random } from '../../src/predict/random.js';

export const MODULES = ['shop', 'billing', 'catalog', 'audit', 'mail', 'tenant'] as const;
export type Module = (typeof MODULES)[number];
export const TABLES_PER_MODULE = 3;

export interface Transaction {
  readonly module: Module;
  readonly tables: readonly string[];
  /** One statement per table, parameters left out. */
  readonly sql: readonly string[];
  /** Key in the module's first table. */
  readonly key: number;
  readonly write: boolean;
}

export interface Truth {
  /** The module's hot keys change at this hour beyond their usual drift, or are rewritten at large. */
  readonly diverges: (module: Module, hour: number) => boolean;
}

const KEYS = 5000;
const ZIPF = 1.1;
/** Transactions per hour at the middle of a working day. */
const PEAK: Readonly<Record<Module, number>> = {
  shop: 3000,
  billing: 700,
  catalog: 1800,
  audit: 350,
  mail: 500,
  tenant: 900,
};
const WRITE_SHARE: Readonly<Record<Module, number>> = {
  shop: 0.1,
  billing: 0.2,
  catalog: 0.01,
  audit: 0.3,
  mail: 0.05,
  tenant: 0.08,
};
const FLASH_FROM = 24 * 24 + 13;
const FLASH_HOURS = 5;
const ONBOARDED = 24 * 17 + 9;
const BATCH_HOUR = 3;
/** Of all transactions, those that touch another module's table too. */
const ACROSS = 0.004;

export const truth: Truth = {
  diverges: (module, hour) =>
    // The crowd comes, and goes.
    (module === 'catalog' && (hour === FLASH_FROM || hour === FLASH_FROM + FLASH_HOURS)) ||
    (module === 'billing' && hour % 24 === BATCH_HOUR),
};

/** Expected transactions in one hour. */
export function rateOf(module: Module, hour: number): number {
  const ofDay = hour % 24;
  const weekend = Math.floor(hour / 24) % 7 >= 5 ? 0.55 : 1;
  const cycle = weekend * (0.15 + 0.85 * Math.max(0, Math.sin(((ofDay - 6) / 16) * Math.PI)) ** 1.5);
  if (module === 'tenant' && hour < ONBOARDED) return 2;
  if (module === 'billing' && ofDay === BATCH_HOUR) return 2500;
  const flash = module === 'catalog' && hour >= FLASH_FROM && hour < FLASH_FROM + FLASH_HOURS ? 6 : 1;
  return PEAK[module] * cycle * flash;
}

/** A count around its rate: Poisson, by its normal approximation. */
export function countOf(random: Random, rate: number): number {
  return Math.max(0, Math.round(rate + Math.sqrt(rate) * normal(random)));
}

function zipfTable(): Float64Array {
  const sums = new Float64Array(KEYS);
  let sum = 0;
  for (let rank = 0; rank < KEYS; rank++) sums[rank] = sum += (rank + 1) ** -ZIPF;
  return sums.map((one) => one / sum);
}

export class Application {
  readonly #random: Random;
  readonly #zipf = zipfTable();

  constructor(seed: number) {
    this.#random = seededRandom(seed);
  }

  /** The transactions of one hour, all modules, in any order. */
  *hour(hour: number): IterableIterator<Transaction> {
    for (const module of MODULES) {
      const count = countOf(this.#random, rateOf(module, hour));
      for (let index = 0; index < count; index++) yield this.#transaction(module, hour);
    }
  }

  #transaction(module: Module, hour: number): Transaction {
    const random = this.#random;
    const batch = module === 'billing' && hour % 24 === BATCH_HOUR;
    const key = batch ? Math.floor(random() * 400) : this.#key(module, hour);
    const write = batch || random() < WRITE_SHARE[module];
    const tables = [`${module}_0`];
    for (let table = 1; table < TABLES_PER_MODULE; table++)
      if (random() < 0.5) tables.push(`${module}_${table}`);
    if (random() < ACROSS) tables.push(`${MODULES[Math.floor(random() * MODULES.length)] ?? 'shop'}_1`);
    const sql = tables.map((table, at) =>
      write && at === 0 ? `UPDATE ${table} SET v = $1 WHERE id = $2` : `SELECT * FROM ${table} WHERE id = $1`,
    );
    return { module, tables, sql, key, write };
  }

  #key(module: Module, hour: number): number {
    let low = 0;
    let high = KEYS - 1;
    const draw = this.#random();
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#zipf[middle] as number) < draw) low = middle + 1;
      else high = middle;
    }
    const flash = module === 'catalog' && hour >= FLASH_FROM && hour < FLASH_FROM + FLASH_HOURS;
    // Each rank passes to another key every four days, at an hour of its own; a flash crowd wants other keys altogether.
    return (low * 7 + 3 * Math.floor((hour + low * 37) / 96) + (flash ? 2500 : 0)) % KEYS;
  }
}
