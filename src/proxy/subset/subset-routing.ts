/** What sessions share while subsets are on different sides. */
import type { Side } from '../../core/ports.js';
import type { StatementReaches } from '../../core/subset-ports.js';
import type { Router } from '../router.js';
import type { MoveSlots, MoveTarget } from '../session/session-move.js';

export interface SubsetRouting {
  readonly router: Router;
  readonly reaches: StatementReaches;
  readonly target: (side: Side) => MoveTarget;
  readonly settingNames: () => readonly string[];
  readonly slots: MoveSlots;
}
