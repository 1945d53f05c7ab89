/** What is done behind the gate, done once before it closes. */
import { asUnderstudyError } from '../core/errors.js';
import { rehearseChange } from './barrier.js';
import { fenceChange, guardChange, reopenChange, stageChange } from './fence.js';
import { abortable, followingTarget, leadingTarget, type Operation } from './operation.js';

/**
 * Raises and lowers the barriers of both sides as the steps will, and takes it back: connections are slow at what they
 * do for the first time. It is only for that: what fails here is left to the step itself.
 */
export async function rehearse(operation: Operation): Promise<void> {
  const { deps, kind, key, members, markId, signal } = operation;
  const leading = leadingTarget(operation);
  const following = followingTarget(operation);
  const [first, second] =
    kind === 'cutover'
      ? [fenceChange(members, markId), stageChange(members)]
      : [guardChange(members, markId), reopenChange(members, 'stage', [])];
  const rehearsed = await abortable(
    Promise.allSettled([
      rehearseChange(leading.session, leading.plan, first),
      rehearseChange(following.session, following.plan, second),
    ]),
    signal,
  );
  for (const each of rehearsed) {
    if (each.status === 'fulfilled') continue;
    const { code, message } = asUnderstudyError(each.reason, 'internal', 'rehearsing');
    deps.log.debug({ operation: key.id, code, reason: message }, 'the barrier could not be rehearsed');
  }
}
