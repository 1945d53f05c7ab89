import type { BorderTie, SubsetBorder } from '../../core/subset-ports.js';
import { formatCount } from './format.js';

const TIES_SHOWN = 8;

const POLICY: Readonly<Record<BorderTie['policy'], string>> = {
  together: 'switched in one operation',
  unenforced: 'not enforced while apart',
  refused: 'can’t be parted',
};

/** What ties each two subsets, and what becomes of it. */
export function borderLines(borders: readonly SubsetBorder[]): readonly string[] {
  return borders.flatMap(({ subsets: [one, other], ties, crossing, transactions }) => {
    const count =
      transactions === undefined
        ? ''
        : `: ${formatCount(transactions.low)} to ${formatCount(transactions.high)} captured transactions touch both`;
    const then =
      crossing === 'follow'
        ? 'crossing: follow, the two are switched in one operation'
        : 'crossing: refuse, transactions of both are refused while apart';
    const shown = ties
      .slice(0, TIES_SHOWN)
      .map(({ a, b, by, policy }) => `    ${a} – ${b}: ${by} (${POLICY[policy]})`);
    return [
      `  ${one} and ${other}${count} (${then})`,
      ...shown,
      ...(ties.length > shown.length ? [`    and ${ties.length - shown.length} more: --json has all`] : []),
    ];
  });
}
