/** `understudy log`: decisions of the loop, cutovers and rollbacks, from the destination's journal. */
import { UnderstudyError } from '../../core/errors.js';
import { WHOLE_DATABASE } from '../../core/ports.js';
import { Decisions, type DecisionRecord, type OperationSummary } from '../autopilot/decisions.js';
import type { ResolvedConfig } from '../config.js';
import { EXIT, type ExitCode } from './exit-codes.js';
import { formatMs } from './format.js';
import type { Terminal } from './terminal.js';

const LIMIT_MAX = 10_000;

/** Throws `config-invalid`, `destination-unreachable`. */
export async function runLog(terminal: Terminal, config: ResolvedConfig, limit: number): Promise<ExitCode> {
  if (!Number.isInteger(limit) || limit < 1 || limit > LIMIT_MAX)
    throw new UnderstudyError('config-invalid', `--limit: expected a whole number from 1 to ${LIMIT_MAX}`);
  const { decisions, operations } = await new Decisions(config.destination).list(limit);
  for (const line of logLines(decisions, operations)) terminal.line(line);
  terminal.result({ decisions, operations });
  return EXIT.ok;
}

/** The oldest first, as logs are. */
export function logLines(
  decisions: readonly DecisionRecord[],
  operations: readonly OperationSummary[],
): readonly string[] {
  const entries = [
    ...decisions.map((decision) => ({ at: decision.at, lines: decisionLines(decision) })),
    ...operations.map((operation) => ({ at: operation.startedAt, lines: operationLines(operation) })),
  ].sort((a, b) => (a.at < b.at ? -1 : 1));
  if (entries.length === 0) return ['nothing was decided, and nothing switched, yet'];
  return entries.flatMap(({ lines }) => lines);
}

export function decisionLines(decision: DecisionRecord): readonly string[] {
  const { at, kind, code, subset, reason, outcome, outcomeReason, operation } = decision;
  const of = subset === undefined ? '' : ` ${subset}`;
  const lines = [`${at}  ${kind}${of} (${code}): ${reason}`];
  const figures = Object.entries(decision.figures).flatMap(([name, value]) =>
    value === null ? [] : [`${name} ${typeof value === 'number' ? Number(value.toPrecision(4)) : value}`],
  );
  if (kind !== 'rest' && kind !== 'wait') lines.push(`  on ${figures.join(', ')}`);
  if (kind === 'cutover' || kind === 'retire' || (kind === 'tune' && outcome !== 'done')) {
    const which = operation === null ? '' : `, operation ${operation}`;
    lines.push(
      `  → ${outcome ?? 'no outcome was recorded'}${which}${outcomeReason === null ? '' : `: ${outcomeReason}`}`,
    );
  }
  return lines;
}

function operationLines({
  id,
  subset,
  kind,
  state,
  startedAt,
  reason,
  report,
}: OperationSummary): readonly string[] {
  const of = subset === WHOLE_DATABASE ? '' : ` of ${subset}`;
  const lines = [`${startedAt}  ${kind}${of} ${id}: ${state}${reason === null ? '' : `: ${reason}`}`];
  if (report !== null && report.outcome === 'done')
    lines.push(
      `  ${formatMs(report.totalMs)} in all; ${report.stall.held} sessions waited, p50 ${formatMs(report.stall.p50)}, max ${formatMs(report.stall.max)}`,
    );
  return lines;
}
