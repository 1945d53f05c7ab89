/**
 * What a server has told of its settings by ParameterStatus, as one comparable thing: clients follow these values, and
 * are told the differences when their next connection has others.
 */
import { encodeParameterStatus } from '../../wire/postgres/messages.js';

export interface ParameterSet {
  readonly values: ReadonlyMap<string, string>;
}

const SETS_MAX = 1000;
const NOTHING = Buffer.alloc(0);

export class ParameterSets {
  readonly #sets = new Map<string, ParameterSet>();

  /** Equal values give the identical set. */
  intern(values: ReadonlyMap<string, string>): ParameterSet {
    const key = JSON.stringify([...values].toSorted(([a], [b]) => (a < b ? -1 : 1)));
    const known = this.#sets.get(key);
    if (known !== undefined) return known;
    if (this.#sets.size >= SETS_MAX) this.#sets.clear();
    const made: ParameterSet = { values: new Map(values) };
    this.#sets.set(key, made);
    return made;
  }
}

/** ParameterStatus frames that bring one who knows `from` to know `to`. */
export function parameterChanges(from: ParameterSet, to: ParameterSet): Buffer {
  if (from === to) return NOTHING;
  const frames = [...to.values]
    .filter(([name, value]) => from.values.get(name) !== value)
    .map(([name, value]) => encodeParameterStatus(name, value));
  return frames.length === 0 ? NOTHING : Buffer.concat(frames);
}
