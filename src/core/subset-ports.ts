/** Between the proxy, which has to send each statement to its side, and whoever can read statements. No logic here. */
import type { SubsetId } from './ports.js';

/** What ties two tables of different subsets. */
export interface BorderTie {
  /** As `schema.name`; of a sequence that a table draws from, `b` is the sequence. */
  readonly a: string;
  readonly b: string;
  /** `foreign key lines_order`, `view public.totals`, … */
  readonly by: string;
  /** together: what it ties is switched in one operation. unenforced: it does not hold while they are apart. refused: the two
   *  are not to be parted, and a cutover that would is refused. */
  readonly policy: 'together' | 'unenforced' | 'refused';
}

/** What is between two subsets, the names ascending. */
export interface SubsetBorder {
  readonly subsets: readonly [SubsetId, SubsetId];
  readonly ties: readonly BorderTie[];
  /** What becomes of transactions that touch both. */
  readonly crossing: 'refuse' | 'follow';
  /** How many of the captured ones do, at least and at most; absent where none was seen. */
  readonly transactions?: { readonly low: number; readonly high: number };
}

export interface SubsetBorders {
  readonly asOf: string;
  readonly borders: readonly SubsetBorder[];
  /** Transactions were captured: where a border has none, none was seen. */
  readonly captured: boolean;
  /** What may tie subsets and can't be read, one sentence each. */
  readonly unknown: readonly string[];
}

/** What decides how a name in a statement is read. */
export interface NameScope {
  /** As SHOW search_path tells it. */
  readonly searchPath: string;
  /** Whose name `"$user"` stands for. */
  readonly user: string;
  /** The text is that of a statement prepared by SQL: what counts is what running it does. */
  readonly prepared?: true;
}

/** What a text touches, of all its statements together. */
export interface StatementReach {
  /** 16 hexadecimal digits. */
  readonly fingerprint: string;
  /** Of the tables it reads, writes or locks; ascending. */
  readonly subsets: readonly SubsetId[];
  /** Why it can't be said what it touches, or why neither side can be given it; null where that is known. */
  readonly unknown: string | null;
  /**
   * What becomes of it where it touches no table, and its transaction then turns out to be the other side's:
   * skip: nothing of it is left to do there. repeat: it is run there again. anchor: its answer is this side's, or can't be
   * had twice, so the transaction stays.
   */
  readonly redo: 'skip' | 'repeat' | 'anchor';
  /** The search path, or whom `"$user"` stands for, may be another one afterwards. */
  readonly changesScope: boolean;
  /**
   * It ends a transaction, whose search path was perhaps another one; used-behind: and reads or writes a table, or calls a
   * function, behind that.
   */
  readonly scopeEnd: 'none' | 'ends' | 'used-behind';
  /** Statements prepared by SQL that it runs, by name. */
  readonly executes: readonly string[];
}

export interface StatementReaches {
  /** Undefined where it has not been read, or the catalogs have changed since. */
  known(text: string, scope: NameScope): StatementReach | undefined;
  /** Throws what keeps it from being read; never hangs longer than its bound. */
  read(text: string, scope: NameScope): Promise<StatementReach>;
}
