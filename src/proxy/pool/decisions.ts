/**
 * What is known of a statement's text, found out once: what it may leave in the session, whether it can only be run on
 * a connection of its client's own from then on, and whether it may share one.
 *
 * Texts are remembered whole where they are short, and by their skeleton (literals replaced) where they are reads, so
 * that what differs by literals alone is judged once. Both tables are bounded; the oldest goes first. A verdict on
 * sharing belongs to one reading of the catalogs and is made anew after the next.
 */
import type { PoolPin } from './pool-settings.js';
import {
  LOADS_LIBRARY,
  NAMES_SETTINGS,
  UNKNOWN_SETTING,
  type StatementText,
} from '../../wire/postgres/statement-text.js';
import { isHarmless, type CatalogFacts } from './catalog-facts.js';
import { shapeOfRead, type StatementShape } from './sql-shape.js';

export class Decision {
  /** Flags of statement-text.ts. */
  readonly flags: number;
  /** Custom settings it names. */
  readonly settingNames: readonly string[];
  /** What it leaves can't be carried to another connection, nor be found by asking. */
  readonly pin: PoolPin | null;
  /** It asks for what an earlier statement of its session left: the connection's sequences are forgotten before it. */
  readonly asksSequences: boolean;
  readonly shape: StatementShape | null;
  /** It may create a table while its tag speaks of a SELECT. */
  readonly creates: boolean;
  #judgedBy: CatalogFacts | null = null;
  #harmless = false;
  #runs = 0;
  #longRuns = 0;
  /** Seen to be slow, or to write after all: not shared before then. */
  #aloneUntilMs = 0;
  /** It is alone because most of its runs were not short, not for a worse reason. */
  #aloneForSlowness = false;
  /** Grows with each shared run that was not short and shrinks with each that was, up to SLOW. */
  #slowness = UNKNOWN;

  constructor(
    flags: number,
    settingNames: readonly string[],
    pin: PoolPin | null,
    asksSequences: boolean,
    shape: StatementShape | null,
    creates = false,
  ) {
    this.flags = flags;
    this.settingNames = settingNames;
    this.pin = pin;
    this.asksSequences = asksSequences;
    this.shape = shape;
    this.creates = creates;
  }

  mayShare(facts: CatalogFacts | null, nowMs: number): boolean {
    if (facts === null || this.shape === null) return false;
    if (this.#judgedBy !== facts) {
      this.#judgedBy = facts;
      this.#harmless = isHarmless(this.shape, facts);
    }
    if (!this.#harmless) return false;
    if (this.#aloneUntilMs === 0) return true;
    if (nowMs < this.#aloneUntilMs) return false;
    // What was slow then is tried again, as if never seen.
    this.#aloneUntilMs = 0;
    this.#slowness = UNKNOWN;
    return true;
  }

  /** Not shared before `untilMs`; infinite: never again. */
  keepAlone(untilMs: number): void {
    this.#aloneUntilMs = Math.max(this.#aloneUntilMs, untilMs);
    this.#aloneForSlowness = false;
  }

  /** How long it takes has been seen. */
  get timed(): boolean {
    return this.#slowness !== UNKNOWN;
  }

  /**
   * It was run on a shared connection and took `tookMs`, all waiting in front of it apart. A text of which most runs
   * exceed `shortMs` is kept alone for `aloneMs`.
   */
  ranShared(tookMs: number, shortMs: number, nowMs: number, aloneMs: number): void {
    this.#runs += 1;
    const before = Math.max(0, this.#slowness);
    if (tookMs <= shortMs) {
      this.#slowness = Math.max(0, before - 1);
      return;
    }
    this.#slowness = Math.min(SLOW, before + 1);
    if (this.#slowness < SLOW || this.#aloneUntilMs > nowMs) return;
    this.#aloneUntilMs = nowMs + aloneMs;
    this.#aloneForSlowness = true;
  }

  /**
   * It was run on a connection of its client's own. Short runs there bring it back; long ones prove nothing, as on a
   * busy machine connections of clients' own are what makes everything long.
   */
  ranAlone(tookMs: number, shortMs: number): void {
    if (tookMs > shortMs) return;
    this.#slowness = Math.max(0, this.#slowness - 2);
    if (this.#slowness === 0 && this.#aloneForSlowness) this.#aloneUntilMs = 0;
  }

  /** It took longer than a shared read may. Once in a long while is the machine's fault, not the statement's. */
  tookLong(untilMs: number): void {
    this.#longRuns += 1;
    if (this.#longRuns * RUNS_PER_LONG_ONE > this.#runs) this.keepAlone(untilMs);
  }
}

/** Of the bound on a shared read: what is shorter is short. */
export const SHORT_SHARE = 0.1;
const UNKNOWN = -1;
/** From here on a text counts as slow; a connection's first runs, which read the catalogs, do not make it so. */
const SLOW = 3;
/** A read that takes long less often than this stays shared. */
const RUNS_PER_LONG_ONE = 100;
const TEXTS_MAX = 5000;
const SKELETONS_MAX = 5000;
/** Longer texts are looked at each time they come, and never shared. */
const TEXT_BYTES_MAX = 8192;

/** What tells a session what its sequences gave it last. */
export const SEQUENCE_STATE = /\b(?:currval|lastval)\b/i;
/** CREATE TABLE AS, SELECT INTO. */
const CREATES = /\b(?:create|into)\b/i;
const REMOTE_STATE = /\bdblink_(?:connect|open|send_query)/i;

export class Decisions {
  readonly #text: StatementText;
  readonly #statefulFunctions: () => readonly string[];
  readonly #wantShapes: boolean;
  #seenStateful: readonly string[] | null = null;
  readonly #byText = new Map<string, Decision>();
  readonly #bySkeleton = new Map<string, Decision>();

  /** `wantShapes`: reads may share connections. Needs a StatementText of its own. */
  constructor(text: StatementText, statefulFunctions: () => readonly string[], wantShapes: boolean) {
    this.#text = text;
    this.#wantShapes = wantShapes;
    this.#statefulFunctions = statefulFunctions;
  }

  /** Of the text in `bytes[start, end)`. `cut`: it went on, so anything may have followed. */
  of(bytes: Buffer, start: number, end: number, cut: boolean): Decision {
    this.#follow();
    if (cut || end - start > TEXT_BYTES_MAX) return this.#decide(bytes, start, end, cut);
    const text = bytes.toString('latin1', start, end);
    const known = this.#byText.get(text);
    if (known !== undefined) return known;
    const decision = this.#decide(bytes, start, end, false);
    if (!this.#wantShapes || decision.flags !== 0 || decision.pin !== null) {
      return remember(this.#byText, TEXTS_MAX, text, decision);
    }
    const shape = shapeOfRead(text);
    if (shape === null) return remember(this.#byText, TEXTS_MAX, text, decision);
    const read = new Decision(0, [], null, false, shape);
    if (shape.skeleton === text) return remember(this.#byText, TEXTS_MAX, text, read);
    // What comes with ever new literals must not push out the rest.
    return (
      this.#bySkeleton.get(shape.skeleton) ?? remember(this.#bySkeleton, SKELETONS_MAX, shape.skeleton, read)
    );
  }

  #decide(bytes: Buffer, start: number, end: number, cut: boolean): Decision {
    const flags = this.#text.classify(bytes, start, end, cut);
    const names = (flags & NAMES_SETTINGS) === 0 ? [] : [...this.#text.settingNames];
    const text = bytes.toString('latin1', start, Math.min(end, start + TEXT_BYTES_MAX));
    const asksSequences = SEQUENCE_STATE.test(text);
    const remote = REMOTE_STATE.test(text);
    return new Decision(
      flags,
      names,
      pinOf(flags, asksSequences, remote),
      asksSequences,
      null,
      cut || CREATES.test(text),
    );
  }

  /** The names of functions that change session state come from the catalogs, which change. */
  #follow(): void {
    const names = this.#statefulFunctions();
    if (names === this.#seenStateful) return;
    const before = this.#seenStateful;
    this.#seenStateful = names;
    if (before?.length === names.length && names.every((name, index) => name === before[index])) return;
    this.#text.setStatefulNames(names);
    this.#byText.clear();
    this.#bySkeleton.clear();
  }
}

function pinOf(flags: number, asksSequences: boolean, remote: boolean): PoolPin | null {
  if ((flags & UNKNOWN_SETTING) !== 0) {
    return { reason: 'unknown-setting', detail: 'a setting whose name the statement does not tell' };
  }
  if ((flags & LOADS_LIBRARY) !== 0) return { reason: 'loaded-library', detail: 'a LOAD statement' };
  if (asksSequences) return { reason: 'sequence-values', detail: 'currval or lastval' };
  if (remote) return { reason: 'remote-connection', detail: 'dblink' };
  return null;
}

function remember(table: Map<string, Decision>, most: number, key: string, decision: Decision): Decision {
  if (table.size >= most) {
    for (const oldest of table.keys()) {
      table.delete(oldest);
      break;
    }
  }
  table.set(key, decision);
  return decision;
}
