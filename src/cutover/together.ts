/**
 * Which subsets one operation switches: the one that was asked for, and what is not to be parted from it.
 *
 * A tie counts both ways and in chains: where orders are tied to customers, and these to invoices, either of the three takes
 * along the others. Only those that are on the side that is left can come along; a tie to a subset that is there already
 * is healed by the operation.
 */
import type { Finding, OperationKind, SubsetId, SubsetTie } from '../core/ports.js';

export interface Chosen {
  /** The one that was asked for is the first, the others are in the order of their names. */
  readonly subsets: readonly SubsetId[];
  readonly announced: readonly Finding[];
}

/** `led`: all that are on the side which `asked` is to leave. */
export function taken(
  asked: SubsetId,
  led: readonly SubsetId[],
  ties: readonly SubsetTie[],
  kind: OperationKind,
): Chosen {
  const reasons = new Map<SubsetId, SubsetTie | null>([[asked, null]]);
  // A map goes through what is added to it meanwhile.
  for (const [subset] of reasons) {
    for (const tie of ties) {
      const other = otherEnd(tie, subset);
      if (other === null || tie.by === 'crossing-unknown') continue;
      if (led.includes(other) && !reasons.has(other)) reasons.set(other, tie);
    }
  }
  const along = [...reasons].flatMap(([subset, tie]) => (tie === null ? [] : [{ subset, tie }]));
  along.sort((a, b) => (a.subset < b.subset ? -1 : 1));
  const subsets = [asked, ...along.map(({ subset }) => subset)];
  return {
    subsets,
    announced: [
      ...along.map(({ subset, tie }) => carried(subset, otherEnd(tie, subset) ?? asked, tie)),
      ...unknownCuts(subsets, led, ties, kind),
    ],
  };
}

function otherEnd({ a, b }: SubsetTie, subset: SubsetId): SubsetId | null {
  if (a === subset) return b;
  return b === subset ? a : null;
}

function carried(object: SubsetId, other: SubsetId, { by, detail }: SubsetTie): Finding {
  const why =
    by === 'foreign-key' ? `a foreign key ties it to ${other}` : `transactions touch it and ${other}`;
  return {
    severity: 'info',
    check: 'subset-carried',
    side: 'proxy',
    object,
    message: `is switched in the same operation: ${why} (${detail})`,
    advice: 'Nothing, or change its policy in `subsets` if it is to stay.',
  };
}

/** The way back is never refused for it. */
function unknownCuts(
  subsets: readonly SubsetId[],
  led: readonly SubsetId[],
  ties: readonly SubsetTie[],
  kind: OperationKind,
): readonly Finding[] {
  const cut = ties.filter(
    ({ a, b, by }) =>
      by === 'crossing-unknown' &&
      led.includes(a) &&
      led.includes(b) &&
      subsets.includes(a) !== subsets.includes(b),
  );
  return cut.map(({ a, b, detail }) => ({
    severity: kind === 'cutover' ? 'blocker' : 'warning',
    check: 'crossing-unknown',
    side: 'proxy',
    object: `${a} and ${b}`,
    message: `the policy is to switch together what transactions touch together, and that is not known: ${detail}`,
    advice:
      'Let capture see the application for a while, or switch all subsets at once by leaving --subset out.',
  }));
}
