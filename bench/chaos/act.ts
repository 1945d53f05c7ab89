/** One act: a cutover or rollback, its points armed, the faults made there and taken back, and what must hold of it. */
import type { OperationKind } from '../../src/core/ports.js';
import type { StepPoint } from '../../src/cutover/settings.js';
import { auditProbes } from './audit.js';
import { comesTrue, finding } from './checks.js';
import { CROSSING } from './crew.js';
import { asLinkFault, type Faults } from './faults.js';
import type { Act, Fault } from './plan.js';
import { checkRest } from './rest.js';
import type { Scene } from './scene.js';
import type { OperationOutcome } from './subject.js';

const OPERATION_TIMEOUT_MS = 45_000;
const FOLLOW_AGAIN_MS = 10_000;

/** Nothing befalls it, so it must succeed. */
export const QUIET: Act = {
  faults: [],
  abort: false,
  lastsMs: 0,
  restartAfterMs: 0,
  understudyFirst: true,
  subset: 0,
};

export async function playAct(scene: Scene, faults: Faults, act: Act): Promise<void> {
  const { subject, history, arrangement } = scene;
  await streamsFound(scene);
  const before = await subject.status();
  const subset = arrangement.subsets[act.subset] ?? 'all';
  const from = scene.routeOf(before, subset)?.side ?? 'source';
  const kind: OperationKind = from === 'source' ? 'cutover' : 'rollback';
  const [errorsBefore, probesBefore] = [history.errors.length, history.probes.length];
  const others = scene.otherRoutes(before, subset);
  const destinationServes = arrangement.subsets.some(
    (each) => scene.routeOf(before, each)?.side === 'destination',
  );
  scene.unsettled([subset]);
  const reached = arm(scene, faults, act);
  const value = await operate(scene, faults, act, { kind, subset }, reached.settled);
  scene.acts.push({
    kind,
    ...(scene.several ? { subset } : {}),
    outcome: describeOutcome(value),
    faults: act.faults.map(({ name }) => name),
    missed: act.faults.filter((fault) => !reached.made.has(fault)).map(({ name }) => name),
    stallMaxMs: value.kind === 'report' ? value.report.stall.max : 0,
    steps: value.kind === 'report' ? value.report.steps : {},
  });
  await checkRest(scene, { kind, subset, from, others }, value);
  if (
    act.faults.length === 0 &&
    !faults.schemaChanged &&
    !(value.kind === 'report' && value.report.outcome === 'done')
  ) {
    scene.found(finding('refused-for-nothing', `${kind} ${describeOutcome(value)}`));
  }
  scene.found(...auditProbes(history.probes.slice(probesBefore)));
  if (isPainless(act, value, destinationServes)) {
    for (const error of history.errors.slice(errorsBefore)) {
      if (error.worker === CROSSING && error.code === '0A000') continue;
      scene.found(finding('client-hurt', `${error.worker} ${error.doing}: ${error.code} ${error.message}`));
    }
  }
  scene.done(`act ${scene.acts.length}`);
}

/** A shadow that has lost its connections is given the time to find them again: else the operation is just refused. */
async function streamsFound(scene: Scene): Promise<void> {
  await comesTrue(async () => {
    const shadow = (await scene.subject.status())?.shadow;
    return (
      shadow?.phase === 'failed' ||
      shadow?.streams.every(({ connected, lagMs }) => connected && lagMs !== null) === true
    );
  }, scene.patient(FOLLOW_AGAIN_MS));
}

async function operate(
  scene: Scene,
  faults: Faults,
  act: Act,
  { kind, subset }: { readonly kind: OperationKind; readonly subset: string },
  settled: () => Promise<void>,
): Promise<OperationOutcome> {
  const { subject } = scene;
  const outcome: { value?: OperationOutcome } = {};
  const operation = subject
    .operate(kind, scene.several ? { subset } : {})
    .then((value) => (outcome.value = value));
  await Promise.race([
    operation,
    new Promise((resolve) => setTimeout(resolve, scene.patient(OPERATION_TIMEOUT_MS))),
  ]);
  // A lost answer may come before its cause is known: the process has ended, or its point was about to be reached.
  await settled();
  await faults.heal(act.restartAfterMs, act.understudyFirst);
  subject.disarm();
  if (!(await comesTrue(() => outcome.value !== undefined, scene.patient(OPERATION_TIMEOUT_MS)))) {
    scene.found(finding('operation-stuck', `${kind} has not ended`));
  }
  return outcome.value ?? { kind: 'lost' };
}

/** Arms the points of an act's faults. Each is made when its point is reached; `lastsMs` later all are taken back. */
function arm(
  scene: Scene,
  faults: Faults,
  act: Act,
): { readonly made: ReadonlySet<Fault>; readonly settled: () => Promise<void> } {
  const { subject } = scene;
  const made = new Set<Fault>();
  const under: Promise<void>[] = [];
  const byPoint = new Map<StepPoint, Fault[]>();
  for (const fault of act.faults) byPoint.set(fault.point, [...(byPoint.get(fault.point) ?? []), fault]);
  const timers: NodeJS.Timeout[] = [];
  const over = (): void => {
    const heal = (): void => void under.push(faults.heal(act.restartAfterMs, act.understudyFirst));
    timers.push(setTimeout(heal, act.lastsMs));
  };
  const makeAll = async (those: readonly Fault[]): Promise<void> => {
    for (const fault of those) {
      if (fault.delayMs > 0) await new Promise((resolve) => setTimeout(resolve, fault.delayMs));
      made.add(fault);
      await faults.make(fault, act.subset).catch((error: unknown) => {
        scene.found(finding('harness', `${fault.name}: ${String(error)}`));
      });
    }
  };
  for (const [point, those] of byPoint) {
    const hold = those.some(({ delayMs }) => delayMs === 0);
    subject.arm(point, { hold }, () => {
      under.push(
        makeAll(those).then(() => {
          subject.go(point);
          over();
        }),
      );
    });
  }
  if (act.abort && !byPoint.has('before:commit')) {
    subject.arm('before:commit', { hold: true }, () => {
      under.push(subject.call('abort', {}).then(() => subject.go('before:commit')));
    });
  }
  return {
    made,
    settled: async () => {
      for (let settled = 0; settled < under.length;) {
        settled = under.length;
        await Promise.allSettled(under);
      }
      for (const timer of timers) clearTimeout(timer);
    },
  };
}

export function describeOutcome(outcome: OperationOutcome): string {
  switch (outcome.kind) {
    case 'report':
      return outcome.report.reason === undefined
        ? outcome.report.outcome
        : `${outcome.report.outcome} (${outcome.report.reason.code})`;
    case 'refused':
      return `refused (${outcome.code})`;
    default:
      return outcome.kind;
  }
}

/** Faults that take nothing from a client but the time of the gate, whatever becomes of the operation. */
const PAINLESS: ReadonlySet<string> = new Set(['none', 'clock-jump', 'long-transaction', 'ddl', 'ddl-late']);

/** Whether the act may not have hurt any client: the fault is none of theirs, and the operation ended before its commit. */
function isPainless(act: Act, outcome: OperationOutcome, destinationServes: boolean): boolean {
  if (outcome.kind !== 'report') return false;
  const { report } = outcome;
  const aside = (fault: Fault): boolean =>
    PAINLESS.has(fault.name) ||
    (!destinationServes &&
      report.outcome === 'aborted' &&
      report.reason?.code !== 'in-doubt' &&
      (asLinkFault(fault.name)?.[0] === 'destination' || fault.name === 'disk-full'));
  return act.faults.every(aside);
}
