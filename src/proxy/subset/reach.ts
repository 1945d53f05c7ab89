/** What a segment touches, all its texts together, and the words in which one is refused for it. */
import type { Side, SubsetId } from '../../core/ports.js';
import type { StatementReach } from '../../core/subset-ports.js';

export interface RefusedStatement {
  readonly sqlState: string;
  readonly message: string;
  readonly hint?: string;
}

/** What is to be told in other words than that it could not be read. */
export class StatementRefused extends Error {
  readonly refusal: RefusedStatement;

  constructor(refusal: RefusedStatement) {
    super(refusal.message);
    this.refusal = refusal;
  }
}

export type Reach = Omit<StatementReach, 'executes'>;

export const NOTHING: Reach = {
  fingerprint: '',
  subsets: [],
  unknown: null,
  redo: 'skip',
  changesScope: false,
  scopeEnd: 'none',
};

export function unknown(why: string): Reach {
  return { ...NOTHING, unknown: why };
}

export function unread(why: string): StatementReach {
  return { ...unknown(why), executes: [] };
}

export function both(one: Reach, other: Reach): Reach {
  const usesNames = other.subsets.length > 0;
  return {
    fingerprint: one.fingerprint === '' ? other.fingerprint : one.fingerprint,
    subsets: [...new Set([...one.subsets, ...other.subsets])].sort(),
    unknown:
      one.unknown ??
      other.unknown ??
      (one.changesScope && usesNames ? 'it sets what names mean and uses them at once' : null),
    redo: one.redo === 'anchor' || other.redo === 'skip' ? one.redo : other.redo,
    changesScope: one.changesScope || other.changesScope,
    scopeEnd: scopeEndOf(one, other),
  };
}

function scopeEndOf(one: Reach, other: Reach): Reach['scopeEnd'] {
  if (one.scopeEnd === 'none' || other.scopeEnd === 'used-behind') return other.scopeEnd;
  const calls = other.fingerprint !== '' && other.redo !== 'repeat' && other.scopeEnd === 'none';
  return other.subsets.length > 0 || calls ? 'used-behind' : one.scopeEnd;
}

/** What the server itself would say. */
export const FAILED_BEFORE: RefusedStatement = {
  sqlState: '25P02',
  message: 'current transaction is aborted, commands ignored until end of transaction block',
};
const HINT = 'It can run once both subsets are on one side again.';

export function notKnown({ fingerprint, unknown: why }: Reach): RefusedStatement {
  const which = fingerprint === '' ? 'a statement' : `statement ${fingerprint}`;
  return {
    sqlState: '0A000',
    message: `${which} can't be sent to a side while subsets are on different ones: ${why ?? ''}`,
  };
}

export function spanning(fingerprint: string, one: SubsetId, side: Side, other: SubsetId): RefusedStatement {
  return {
    sqlState: '0A000',
    message: `statement ${fingerprint} spans subsets on different sides: ${one} is on the ${side}, ${other} is not`,
    hint: HINT,
  };
}

export function crossing(
  fingerprint: string,
  bound: { readonly side: Side; readonly subset: SubsetId | null },
  subset: SubsetId,
  side: Side,
): RefusedStatement {
  const before = bound.subset === null ? 'what it has done before' : `subset ${bound.subset}`;
  return {
    sqlState: '0A000',
    message:
      `statement ${fingerprint} touches subset ${subset} on the ${side}, but its transaction is bound to the ` +
      `${bound.side} by ${before}`,
    hint: HINT,
  };
}

export function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
