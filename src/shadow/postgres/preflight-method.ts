/**
 * What the way of following makes of the findings: one that needs no log isn't stopped by what the log lacks. What a
 * cutover needs, it goes on needing.
 */
import type pg from 'pg';
import type { Finding, ShadowMethod } from '../../core/ports.js';
import { chooseMethod, type MethodChoice } from '../method.js';
import { streamNames } from './slot.js';

/** Of the source's log, and of publishing its tables. */
const LOG_CHECKS: ReadonlySet<string> = new Set([
  'wal-level',
  'replication-slots',
  'wal-senders',
  'privilege-replication',
  'slot-keep-size',
]);
/** What fencing the source and writing back to it take. */
const CUTOVER_CHECKS: ReadonlySet<string> = new Set([
  'privilege-create',
  'privilege-ownership',
  'privilege-replica-role',
  'in-recovery',
]);

export interface MethodSettings {
  readonly migrationId: string;
  readonly purpose: 'check' | 'cutover';
  readonly method: ShadowMethod | 'auto';
  /** By which the shadow follows already; null before it began. */
  readonly recorded: ShadowMethod | null;
}

/** The findings as they count by the method that is, or would be, taken, and which one that is. */
export async function byMethod(
  source: pg.Client,
  findings: readonly Finding[],
  settings: MethodSettings,
): Promise<readonly Finding[]> {
  const choice = await chooseMethod(source, {
    asked: settings.method,
    slot: streamNames(settings.migrationId, 'forward').slot,
    recorded: settings.recorded,
  });
  return [...findings.flatMap((finding) => counted(finding, choice, settings)), chosen(choice)];
}

function counted(finding: Finding, { method }: MethodChoice, settings: MethodSettings): readonly Finding[] {
  if (method === 'log' || finding.side !== 'source') return [finding];
  if (LOG_CHECKS.has(finding.check)) {
    return finding.severity === 'info' ? [] : [{ ...finding, severity: 'info' }];
  }
  const later = settings.purpose === 'check' && CUTOVER_CHECKS.has(finding.check);
  return later && finding.severity === 'blocker' ? [{ ...finding, severity: 'warning' }] : [finding];
}

const LIMITS: Readonly<Record<ShadowMethod, string>> = {
  log: '',
  mirror:
    ' Writes past the proxy are found by comparing only, and a cutover compares every row while clients wait.',
  poll: ' Deletions are found by comparing only, and a cutover compares every row while clients wait.',
};

function chosen({ method, reason }: MethodChoice): Finding {
  return {
    severity: 'info',
    check: 'shadow-method',
    side: 'source',
    object: method,
    message: `The shadow follows by ${method}: ${reason}.${LIMITS[method]}`,
    advice:
      method === 'log' ? 'Nothing.' : 'See docs/shadow.md for what each way sees; shadow.method sets it.',
  };
}
