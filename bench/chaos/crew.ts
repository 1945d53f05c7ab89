/** The clients of a run. */
import type { Group } from './arrangement.js';
import { probedGroups } from './checks.js';
import type { History } from './history.js';
import type { Plan } from './plan.js';
import type { Stage } from './stage.js';
import { CopyWorker, CrossingWorker, PipelineWorker, WayWorker } from './subset-workers.js';
import {
  DirectWorker,
  LedgerWorker,
  RegisterWorker,
  SumWorker,
  TransactionLedgerWorker,
  TransferWorker,
  type Worker,
} from './workers.js';

/** Whose work is refused while the sides lead different subsets. */
export const CROSSING = 'crossing';

export function crewOf(
  { seed, subsets }: Plan,
  stage: Stage,
  database: string,
  history: History,
): readonly Worker[] {
  const url = stage.linkUrl('client', database);
  const direct = (groups: readonly (readonly [string, Group])[]): Worker =>
    new DirectWorker(
      [
        ['source', stage.directUrl('source', database)],
        ['destination', stage.directUrl('destination', database)],
      ],
      history,
      seed + 8,
      60,
      groups,
    );
  const always = [
    new LedgerWorker('ledger', url, history, seed + 1, 25),
    new TransactionLedgerWorker('transactions', url, history, seed + 2, 40),
    new TransferWorker('transfer', url, history, seed + 6, 30),
    new SumWorker('sum', url, history, seed + 7, 40),
    direct(probedGroups(history.arrangement)),
  ];
  if (subsets === 0) {
    const registers = [1, 2, 3].map(
      (n) => new RegisterWorker(`register ${n}`, url, history, seed + 2 + n, 25),
    );
    return [...always, ...registers];
  }
  return [
    ...always,
    ...[1, 2, 3].map((client) => new WayWorker({ client, idle: false }, url, history, seed + 10 + client)),
    new WayWorker({ client: 4, idle: true }, url, history, seed + 14),
    new CopyWorker('copy', url, history, seed + 15, 60),
    new CrossingWorker(CROSSING, url, history, seed + 16, 60),
    new PipelineWorker('pipeline', url, history, seed + 17, 40),
  ];
}
