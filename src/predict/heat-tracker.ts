/**
 * Predicts which keys will be hot over the next window. Time is cut into parts, {@link PARTS} to a window; what each part
 * counted is folded into a few memories that differ in half-life and in how much a burst counts (a part's count to the
 * power γ: with γ = ½ a key used in every part outweighs one used as often in a single part). One more memory is the last
 * window as it was, which is plain persistence. Each memory's past predictions are held against what came, and the next
 * prediction is made by the one that covered most lately; so it is no worse than persistence for long.
 * (Following the best expert with discounted gains: Herbster & Warmuth, Machine Learning 32, 1998. Decayed counts: see
 * `space-saving.ts`.)
 *
 * Memory is bounded: `capacity` keys per memory and per part.
 */
import { WRITE_WEIGHT, type KeyHeat } from './hot-set.js';
import { SpaceSaving } from './space-saving.js';

export const PARTS = 10;
/** Half-life of a memory's merit, in windows. */
const MERIT_HALF_LIFE = 1;

interface Recipe {
  readonly name: string;
  /** In windows; infinite for persistence, which forgets by the window. */
  readonly halfLife: number;
  readonly burst: number;
}

const RECIPES: readonly Recipe[] = [
  { name: 'steady', halfLife: 3, burst: 0.5 },
  { name: 'long', halfLife: 3, burst: 1 },
  { name: 'recent', halfLife: 0.5, burst: 0.7 },
  { name: 'latest', halfLife: 0.1, burst: 1 },
];
const PERSISTENCE = 'persistence';

interface Memory<K> {
  readonly name: string;
  readonly recipe: Recipe | undefined;
  heats: Map<K, number>;
  /** Its answers, one per part of the window to come; the oldest is scored next. */
  readonly answers: Set<K>[];
  gained: number;
  possible: number;
}

export class HeatTracker<K> {
  readonly #capacity: number;
  readonly #wanted: number;
  readonly #memories: readonly Memory<K>[];
  #part: SpaceSaving<K>;
  #parts: Map<K, number>[] = [];
  #window = new Map<K, number>();
  #closed = 0;

  /** `capacity`: keys kept per memory; `wanted`: size of the hot set that merit is judged by. */
  constructor(capacity: number, wanted: number) {
    this.#capacity = capacity;
    this.#wanted = wanted;
    this.#part = new SpaceSaving<K>(capacity, Number.MAX_SAFE_INTEGER);
    this.#memories = [...RECIPES, undefined].map((recipe) => ({
      name: recipe?.name ?? PERSISTENCE,
      recipe,
      heats: new Map(),
      answers: [],
      gained: 0,
      possible: 0,
    }));
  }

  offer(key: K, write = false): void {
    this.#part.offer(key, 0, write ? WRITE_WEIGHT : 1);
  }

  /** Ends a part of the window: a tenth of the span that is predicted. */
  closePart(): void {
    const counts = new Map(this.#part.top(this.#capacity).map(({ key, weight }) => [key, weight]));
    this.#part = new SpaceSaving<K>(this.#capacity, Number.MAX_SAFE_INTEGER);
    this.#slide(counts);
    this.#score();
    for (const memory of this.#memories) this.#fold(memory, counts);
    this.#closed += 1;
    for (const memory of this.#memories)
      memory.answers.push(new Set(this.#ranked(memory).map(([key]) => key)));
  }

  /** The memory that answers at present. */
  get leader(): string {
    return this.#best().name;
  }

  /** Expected heat of the next window in accesses (as of the closed parts), hottest first; at most `wanted` keys. */
  predict(): readonly KeyHeat<K>[] {
    const ranked = this.#ranked(this.#best());
    let own = 0;
    let seen = 0;
    for (const [key, heat] of ranked) {
      own += heat;
      seen += this.#window.get(key) ?? 0;
    }
    // Memories rank; the last window says how many accesses their keys get.
    const scale = own > 0 ? seen / own : 0;
    return ranked.map(([key, heat]) => ({ key, heat: heat * scale }));
  }

  /** Adds the newest part to the window and drops the one that left it. */
  #slide(counts: Map<K, number>): void {
    this.#parts.push(counts);
    for (const [key, count] of counts) this.#window.set(key, (this.#window.get(key) ?? 0) + count);
    if (this.#parts.length <= PARTS) return;
    for (const [key, count] of this.#parts.shift() ?? []) {
      const left = (this.#window.get(key) ?? 0) - count;
      if (left > 0) this.#window.set(key, left);
      else this.#window.delete(key);
    }
  }

  /** Holds the answers given a window ago against the window that has come. */
  #score(): void {
    if (this.#closed < PARTS) return;
    const decay = 0.5 ** (1 / (PARTS * MERIT_HALF_LIFE));
    for (const memory of this.#memories) {
      const answer = memory.answers.shift();
      let gained = 0;
      for (const key of answer ?? []) gained += this.#window.get(key) ?? 0;
      memory.gained = memory.gained * decay + gained;
      memory.possible = memory.possible * decay + 1;
    }
  }

  #fold(memory: Memory<K>, counts: ReadonlyMap<K, number>): void {
    const { recipe, heats } = memory;
    if (recipe === undefined) {
      memory.heats = this.#window;
      return;
    }
    const decay = 0.5 ** (1 / (PARTS * recipe.halfLife));
    for (const [key, heat] of heats) heats.set(key, heat * decay);
    for (const [key, count] of counts) heats.set(key, (heats.get(key) ?? 0) + count ** recipe.burst);
    if (heats.size <= 2 * this.#capacity) return;
    memory.heats = new Map(heaviest(heats, this.#capacity));
  }

  #ranked(memory: Memory<K>): readonly (readonly [K, number])[] {
    return heaviest(memory.heats, this.#wanted);
  }

  /** Before anything is known of their merit the recent memory answers. */
  #best(): Memory<K> {
    let best = this.#memories[2] as Memory<K>;
    for (const memory of this.#memories) if (memory.gained > best.gained * 1.001) best = memory;
    return best;
  }
}

/** The `count` largest, largest first. Numbers alone sort several times faster than pairs do. */
export function heaviest<K>(counts: ReadonlyMap<K, number>, count: number): [K, number][] {
  const values = Float64Array.from(counts.values()).sort();
  const least = values[Math.max(0, values.length - count)] ?? 0;
  const kept: [K, number][] = [];
  for (const entry of counts) if (entry[1] >= least) kept.push(entry);
  return kept.sort((a, b) => b[1] - a[1]).slice(0, count);
}
