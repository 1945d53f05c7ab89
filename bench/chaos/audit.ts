/**
 * What must hold of what clients were told and of what the databases hold afterwards. Pure, and independent of the
 * product's code: it knows of sides and answers only.
 */
import { checkRegister, type RegisterOperation } from './linearizable.js';

/** failed: the server said no, and nothing may have been written. unknown: no answer, so either is right. */
export type Outcome = 'acknowledged' | 'failed' | 'unknown';

export interface Attempt {
  readonly id: number;
  readonly outcome: Outcome;
}

export type Problem =
  | 'lost'
  | 'duplicated'
  | 'refused-but-written'
  | 'from-nowhere'
  | 'not-linearizable'
  | 'sum-changed'
  | 'books-do-not-balance'
  | 'both-writable'
  | 'wrong-side'
  | 'stale-read'
  | 'crossing-served'
  | 'crossing-refused';

export interface AuditFinding {
  readonly problem: Problem;
  readonly detail: string;
}

function some(ids: readonly number[]): string {
  const shown = ids.slice(0, 8).join(', ');
  return ids.length > 8 ? `${shown}, … (${ids.length})` : shown;
}

/** Each acknowledged id is there exactly once, each refused one is not, and nothing came from nowhere. */
export function auditLedger(
  what: string,
  attempts: readonly Attempt[],
  present: readonly number[],
): readonly AuditFinding[] {
  const counts = new Map<number, number>();
  for (const id of present) counts.set(id, (counts.get(id) ?? 0) + 1);
  const outcomes = new Map(attempts.map(({ id, outcome }) => [id, outcome]));
  const having = (outcome: Outcome, test: (count: number) => boolean): readonly number[] =>
    attempts.filter((a) => a.outcome === outcome && test(counts.get(a.id) ?? 0)).map(({ id }) => id);
  const cases: readonly (readonly [Problem, readonly number[]])[] = [
    ['lost', having('acknowledged', (count) => count === 0)],
    ['duplicated', [...counts].filter(([, count]) => count > 1).map(([id]) => id)],
    ['refused-but-written', having('failed', (count) => count > 0)],
    ['from-nowhere', [...counts.keys()].filter((id) => !outcomes.has(id))],
  ];
  return cases
    .filter(([, ids]) => ids.length > 0)
    .map(([problem, ids]) => ({ problem, detail: `${what} ${some(ids)}` }));
}

/** Per key. What the writable side holds in the end is one more read of each. */
export function auditRegisters(
  histories: ReadonlyMap<number, readonly RegisterOperation[]>,
  initial: number,
  final: ReadonlyMap<number, number>,
  endedMs: number,
): readonly AuditFinding[] {
  const findings: AuditFinding[] = [];
  for (const [key, history] of histories) {
    const value = final.get(key);
    const operations = [...history];
    if (value === undefined) {
      findings.push({ problem: 'lost', detail: `register ${key}` });
    } else {
      operations.push({ client: -1, kind: 'read', value, calledMs: endedMs, answeredMs: endedMs + 1 });
    }
    const verdict = checkRegister(operations, initial);
    if (verdict.linearizable) continue;
    const { client, kind, value: about, calledMs } = verdict.stuckAt;
    findings.push({
      problem: 'not-linearizable',
      detail: `register ${key}: client ${client}’s ${kind} of ${about}, called at ${calledMs.toFixed(1)} ms`,
    });
  }
  return findings;
}

export interface Transfer {
  readonly id: number;
  readonly from: number;
  readonly to: number;
  readonly amount: number;
}

export interface Bank {
  readonly accounts: number;
  readonly initial: number;
}

/** `sums` is every sum of all balances that a client read while transfers went on. */
export function auditBank(
  bank: Bank,
  sums: readonly number[],
  attempts: readonly Attempt[],
  recorded: readonly Transfer[],
  balances: ReadonlyMap<number, number>,
): readonly AuditFinding[] {
  const findings: AuditFinding[] = [
    ...auditLedger(
      'transfer',
      attempts,
      recorded.map(({ id }) => id),
    ),
  ];
  const total = bank.accounts * bank.initial;
  const wrong = sums.filter((sum) => sum !== total);
  if (wrong.length > 0)
    findings.push({ problem: 'sum-changed', detail: `read as ${some(wrong)} instead of ${total}` });
  for (let account = 1; account <= bank.accounts; account++) {
    const moved = recorded.reduce(
      (sum, { from, to, amount }) => sum + (to === account ? amount : 0) - (from === account ? amount : 0),
      0,
    );
    const expected = bank.initial + moved;
    const balance = balances.get(account);
    if (balance === expected) continue;
    findings.push({
      problem: 'books-do-not-balance',
      detail: `account ${account} holds ${balance ?? 'nothing'}, its transfers say ${expected}`,
    });
  }
  return findings;
}

export interface Probe {
  readonly subset: string;
  readonly side: 'source' | 'destination';
  readonly calledMs: number;
  readonly answeredMs: number;
}

/**
 * Writes past the proxy that a side took, made one after another on both sides in turn, during an operation that moves
 * a subset at most once: once the second side has taken one, the first must never take one again.
 */
export function auditProbes(accepted: readonly Probe[]): readonly AuditFinding[] {
  return [...new Set(accepted.map(({ subset }) => subset))].flatMap((subset) => {
    const its = accepted.filter((probe) => probe.subset === subset);
    const changes = its.filter((probe, index) => index > 0 && its[index - 1]?.side !== probe.side);
    if (changes.length <= 1) return [];
    const shown = changes.map(({ side, calledMs }) => `${side} at ${calledMs.toFixed(1)} ms`).slice(0, 6);
    return [
      { problem: 'both-writable', detail: `writes to ${subset} were taken in turn: ${shown.join(', ')}` },
    ];
  });
}
