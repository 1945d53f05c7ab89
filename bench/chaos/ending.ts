/** The end of a run: the books are audited, all subsets are brought to one side, and Understudy is taken away. */
import type { OperationKind } from '../../src/core/ports.js';
import { describeOutcome } from './act.js';
import type { Group } from './arrangement.js';
import { auditCrossings, auditSides } from './audit-sides.js';
import {
  auditBooks,
  checkConverged,
  finding,
  readTraces,
  writableSides,
  type Finding,
  type Writable,
} from './checks.js';
import { CROSSING } from './crew.js';
import type { Faults } from './faults.js';
import type { Scene } from './scene.js';
import type { ServerSide } from './stage.js';

const CONVERGED_TIMEOUT_MS = 30_000;
const CALM_OPERATION_TRIES = 3;

/** Once the clients have stopped. */
export async function playEnding(scene: Scene, faults: Faults): Promise<void> {
  const { stage, database, history, subject, arrangement } = scene;
  const writable = await writableSides(stage, database, history);
  if ([...writable.values()].some(({ length }) => length !== 1)) return;
  const leads = (group: Group): ServerSide => writable.get(arrangement.of[group])?.[0] ?? 'source';
  scene.found(
    ...(await auditBooks(stage, leads, database, history)),
    ...auditSides(history.sideReads, scene.led),
    ...auditCrossings(history.crossings, scene.led),
    ...refusedNeedlessly(scene),
  );
  if (scene.findings.length > 0 || !subject.running) return;
  if (!faults.schemaChanged && (await scene.following())) scene.found(...(await converged(scene)));
  scene.done('converged');
  const side = await meet(scene, faults, writable);
  scene.done('met');
  if (side !== null) await takeAway(scene, side);
}

const converged = (scene: Scene): Promise<readonly Finding[]> =>
  checkConverged(scene.stage, scene.database, scene.patient(CONVERGED_TIMEOUT_MS));

/** What touches one subset is never refused for spanning two. */
function refusedNeedlessly({ history }: Scene): readonly Finding[] {
  return history.errors
    .filter(({ worker, code }) => code === '0A000' && worker !== CROSSING)
    .slice(0, 10)
    .map(({ worker, atMs, message }) =>
      finding('refused-needlessly', `${worker} at ${atMs.toFixed(0)} ms: ${message}`),
    );
}

/** Where subsets are on different sides nothing may be taken away; then all are brought to one. Null: they could not be. */
async function meet(scene: Scene, faults: Faults, writable: Writable): Promise<ServerSide | null> {
  const { subject, stage, database, history, plan } = scene;
  const sides = [...writable.values()].map(([side]) => side ?? 'source');
  const to: ServerSide = plan.seed % 2 === 0 ? 'source' : 'destination';
  if (new Set(sides).size === 1) return sides[0] ?? null;
  for (const verb of ['finalize', 'remove'] as const) {
    const refused = await subject.call(verb, {});
    if (refused?.error === undefined) {
      scene.found(finding('parted-and-removed', `${verb} was not refused: ${JSON.stringify(refused)}`));
      return null;
    }
  }
  for (const [subset, [side]] of writable) {
    if (side === to) continue;
    const kind: OperationKind = to === 'destination' ? 'cutover' : 'rollback';
    const ended: string[] = [];
    for (let attempt = 0; attempt < CALM_OPERATION_TRIES && ended.at(-1) !== 'done'; attempt++) {
      ended.push(describeOutcome(await subject.operate(kind, { subset })));
    }
    if (ended.at(-1) === 'done') continue;
    if (!faults.schemaChanged)
      scene.found(finding('does-not-meet', `${kind} of ${subset}: ${ended.join(', ')}`));
    return null;
  }
  const after = await writableSides(stage, database, history);
  if ([...after.values()].some(({ length, 0: side }) => length !== 1 || side !== to))
    scene.found(finding('met-elsewhere', `${JSON.stringify([...after])} instead of the ${to}`));
  const armed = (await subject.status())?.proxy.armed;
  if (armed !== false) scene.found(finding('status-untrue', `armed ${armed} once all have met`));
  if (!faults.schemaChanged) scene.found(...(await converged(scene)));
  return to;
}

async function takeAway(scene: Scene, leads: ServerSide): Promise<void> {
  const { subject, stage, database } = scene;
  const verb = leads === 'source' ? 'remove' : 'finalize';
  const ended = await subject.call(verb, verb === 'finalize' ? { removeFence: true } : {});
  if (ended?.error !== undefined || ended === null) {
    scene.found(
      finding('not-removed', `${verb}: ${ended?.error?.code ?? ''} ${ended?.error?.message ?? 'no answer'}`),
    );
    return;
  }
  // The source's epoch stays where there was a switch: nobody shall take an old journal for the present one.
  const left = (await readTraces(stage, database)).filter(
    (trace) =>
      trace !== 'source schema understudy with r epoch' && (verb === 'remove' || !trace.includes(' schema ')),
  );
  scene.done('removed');
  if (left.length > 0) scene.found(finding('left-behind', `after ${verb}: ${left.join(', ')}`));
}
