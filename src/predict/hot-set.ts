/** Which keys are hot: of what was counted, what is expected next, and which set is worth keeping fresh. */
import { confidenceOf, type Judgement } from './judgement.js';

/** Writes make a shadow stale as well as busy. */
export const WRITE_WEIGHT = 3;
export const HOT_SHARE = 0.8;
const ENTER = 1.2;
const LEAVE = 0.8;

export interface KeyHeat<K> {
  readonly key: K;
  /** Predicted accesses (writes weighted {@link WRITE_WEIGHT}), in any one unit. */
  readonly heat: number;
}

export interface HotSet<K> extends Judgement {
  readonly keys: ReadonlySet<K>;
}

/** A hot set without its keys: `share` is the judgement's value. */
export interface HotShare extends Judgement {
  readonly share: number;
  readonly keys: number;
}

/** Of a normal distribution, nine times of ten. */
const Z90 = 1.645;

/**
 * The smallest set with 80 % of the predicted heat, with hysteresis: against the heat of the set's last key, a key from
 * outside must have 1.2 times as much to come in and one inside less than 0.8 times to go out. `value` is the share of
 * heat that the set holds, its ends those of a share counted so often (`±1.645·√(p(1−p)/n)`); terms: keys, known keys, border
 * heat, entered, left. `observations`: accesses behind it. `total`: heat of all keys, where not all of them are told apart.
 */
export function hotSet<K>(
  heats: readonly KeyHeat<K>[],
  previous: ReadonlySet<K>,
  observations: number,
  share: number = HOT_SHARE,
  total: number = heats.reduce((sum, { heat }) => sum + Math.max(0, heat), 0),
): HotSet<K> {
  const sorted = heats.filter(({ heat }) => heat > 0).sort((a, b) => b.heat - a.heat);
  let held = 0;
  let border = 0;
  for (const { heat } of sorted) {
    if (held >= share * total) break;
    held += heat;
    border = heat;
  }
  const keys = new Set<K>();
  let kept = 0;
  for (const { key, heat } of sorted) {
    if (heat < border * (previous.has(key) ? LEAVE : previous.size === 0 ? 1 : ENTER)) continue;
    if (!previous.has(key) && kept >= share * total) continue;
    keys.add(key);
    kept += heat;
  }
  // Hysteresis may hold back too many: the share is owed first.
  for (const { key, heat } of sorted) {
    if (kept >= share * total) break;
    if (keys.has(key)) continue;
    keys.add(key);
    kept += heat;
  }
  const entered = [...keys].filter((key) => !previous.has(key)).length;
  const left = [...previous].filter((key) => !keys.has(key)).length;
  const value = total === 0 ? 0 : Math.min(1, kept / total);
  const off = observations > 0 ? Z90 * Math.sqrt((value * (1 - value)) / observations) : 1;
  return {
    keys,
    value,
    low: Math.max(0, value - off),
    high: Math.min(1, value + off),
    terms: { keys: keys.size, knownKeys: sorted.length, borderHeat: border, entered, left },
    confidence: confidenceOf(observations),
    reason:
      total === 0
        ? 'No access has been seen.'
        : `${keys.size} of ${sorted.length} keys hold ${(value * 100).toFixed(0)} % of the predicted heat.`,
  };
}
