/** What tells a follower where to look: the part in which `poll` and `mirror` differ. */
import type { ShadowMethod } from '../../core/ports.js';
import type { ApplyTable, Key } from '../postgres/apply-table.js';
import type { Session } from '../postgres/statement.js';

/** Rows of one table that may have changed. */
export interface Hint {
  readonly table: ApplyTable;
  readonly keys: readonly Key[];
  /** More may have changed than can be named: the table is to be compared, and why. */
  readonly compare: string | null;
  /** How far this hint reaches; recorded once it is applied. */
  readonly horizon: string | null;
}

export interface RoundOptions {
  /** Look at every table, also at those that seem untouched. */
  readonly full: boolean;
  readonly signal: AbortSignal;
}

/**
 * States what may have changed since the last round. A hint is not news of a value: the follower reads the row itself,
 * later than the hint was made. Naming too much costs reads; what is not named, only a comparison finds.
 *
 * A row that was changed by a transaction that committed before `round` was called is named by that round or was named
 * by an earlier one, as far as the method can know at all.
 */
export interface ChangeHints {
  readonly method: ShadowMethod;
  /** Before the first row of a table is copied: whatever commits from now on will be hinted at. Null: nothing to keep. */
  begin(source: Session, table: ApplyTable): Promise<string | null>;
  /** The recorded horizons, at each start. A table without one is to be compared. */
  load(horizons: ReadonlyMap<string, string>): void;
  round(source: Session, options: RoundOptions): AsyncGenerator<Hint, void, undefined>;
  /** The hint's rows are durably written. */
  applied(hint: Hint): void;
  /** Pause between two rounds, unless `wake` is called before. */
  readonly intervalMs: number;
  /** Set by the follower: called when there may be something before the interval is over. */
  wake: () => void;
  /** Where rows are only asked for when there is a reason: something wrote to the table. */
  look?(table: ApplyTable): void;
  /** What a person should know of a table, in order of names. */
  notes(): readonly { readonly table: string; readonly note: string }[];
}
