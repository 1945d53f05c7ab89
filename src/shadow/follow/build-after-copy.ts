/** Indexes and constraints over rows that were read at different moments. */
import { UnderstudyError } from '../../core/errors.js';
import type { Finding } from '../../core/ports.js';
import { buildAfterCopy, type StageContext } from '../schema-stage.js';

/** unique_violation, foreign_key_violation, exclusion_violation, check_violation. */
const MOVING_STATES: ReadonlySet<unknown> = new Set(['23505', '23503', '23P01', '23514']);

/** Whether something failed that rows of different moments may explain. `last`: then it is reported, or thrown. */
export async function builtAfterCopy(stage: StageContext, last: boolean): Promise<boolean> {
  const findings: Finding[] = [];
  try {
    await buildAfterCopy({ ...stage, onFindings: (found) => findings.push(...found) });
  } catch (error) {
    const moving = error instanceof UnderstudyError && MOVING_STATES.has(error.details['sqlState']);
    if (!moving || last) throw error;
    return true;
  }
  if (!last && findings.some(({ check }) => check === 'constraint-not-valid')) return true;
  stage.onFindings(findings);
  return false;
}
