/** Everything is as it should be again, by itself, soon after an act's faults are over. */
import type { StatusReport } from '../../src/admin/control.js';
import type { OperationKind } from '../../src/core/ports.js';
import {
  checkSlots,
  checkStatus,
  comesTrue,
  finding,
  readTraces,
  writableSides,
  type Writable,
} from './checks.js';
import type { Scene } from './scene.js';
import type { ServerSide } from './stage.js';
import type { OperationOutcome } from './subject.js';
import { Connection } from './workers.js';

const REST_TIMEOUT_MS = 30_000;
const CROSSING_TIMEOUT_MS = 20_000;
const SETTLED: ReadonlySet<string> = new Set(['done', 'aborted']);

export interface Operated {
  readonly kind: OperationKind;
  readonly subset: string;
  readonly from: ServerSide;
  /** The other subsets' routes before. */
  readonly others: string;
}

export async function checkRest(
  scene: Scene,
  { kind, subset, from, others }: Operated,
  outcome: OperationOutcome,
): Promise<void> {
  const { subject, stage, database, history } = scene;
  scene.done(`${kind} of ${subset} over`);
  if (!subject.running) {
    scene.found(finding('understudy-ended', `with ${subject.ending}`));
    return;
  }
  const status = await atRest(scene);
  if (status === null) return;
  const restMs = history.nowMs();
  const writable = await writableSides(stage, database, history);
  for (const [each, sides] of writable) {
    if (sides.length === 1) continue;
    scene.found(
      finding(
        sides.length === 0 ? 'none-writable' : 'both-writable',
        `${each}, after the ${kind} of ${subset}`,
      ),
    );
  }
  scene.settledSince(restMs, new Map([[subset, writable.get(subset) ?? []]]));
  await scene.progress(`after the ${kind}`);
  scene.found(...(await checkStatus(stage, database, status, writable)));
  scene.found(...checkSlots(await readTraces(stage, database)));
  if (scene.otherRoutes(status, subset) !== others) {
    scene.found(finding('others-changed', `${others}, and ${scene.otherRoutes(status, subset)} afterwards`));
  }
  if (scene.several) await crossingsAreKnown(scene, writable);
  if (outcome.kind !== 'report') return;
  const { report } = outcome;
  const expected = report.outcome === 'done' ? (from === 'source' ? 'destination' : 'source') : from;
  const [leads] = writable.get(subset) ?? [];
  if (leads !== expected) {
    scene.found(finding('report-untrue', `${report.outcome}, but ${leads ?? 'no side'} takes writes`));
  }
  if (report.outcome === 'aborted' && (report.reason?.message ?? '') === '') {
    scene.found(finding('no-reason', `the ${kind} aborted and doesn’t say why`));
  }
}

/** Null, and a finding, where it does not come to rest. */
async function atRest(scene: Scene): Promise<StatusReport | null> {
  let last: StatusReport | null = null;
  const calm = await comesTrue(async () => {
    last = await scene.subject.status();
    return (
      last?.ready.ready === true &&
      last.cutover?.running === null &&
      last.cutover.journal === 'reachable' &&
      last.cutover.barriers.source !== 'unknown' &&
      last.cutover.barriers.destination !== 'unknown' &&
      SETTLED.has(last.cutover.last?.state ?? 'done')
    );
  }, scene.patient(REST_TIMEOUT_MS));
  if (calm) return last;
  const seen = last as StatusReport | null;
  scene.found(
    finding(
      'does-not-settle',
      JSON.stringify({ ready: seen?.ready, cutover: seen?.cutover, error: seen?.shadow.error }),
    ),
  );
  return null;
}

/** A client that comes now is refused what spans sides, and served what doesn't. */
async function crossingsAreKnown(scene: Scene, writable: Writable): Promise<void> {
  const { of } = scene.arrangement;
  const differ = writable.get(of.register)?.[0] !== writable.get(of.ledger)?.[0];
  const seen = new Set<string>();
  const asExpected = await comesTrue(async () => {
    const code = await crossOnce(scene);
    seen.add(code ?? 'served');
    return differ ? code === '0A000' : code === null;
  }, scene.patient(CROSSING_TIMEOUT_MS));
  const wrong = seen.has(differ ? 'served' : '0A000');
  if (asExpected && !wrong) return;
  scene.found(
    finding(
      wrong ? 'crossing' : 'crossing-late',
      `sides ${differ ? 'differ' : 'are one'}: ${[...seen].join(', ')}`,
    ),
  );
}

async function crossOnce({ stage, database }: Scene): Promise<string | null> {
  try {
    const connection = await Connection.open(stage.linkUrl('client', database));
    try {
      await connection.query('SELECT (SELECT count(*) FROM register), (SELECT max(seq) FROM ledger)');
      return null;
    } finally {
      connection.destroy();
    }
  } catch (error) {
    return (error as { code?: string }).code ?? 'unnamed';
  }
}
