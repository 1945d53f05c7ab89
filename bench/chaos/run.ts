/**
 * One run: fresh databases, a fresh Understudy, clients at work, then the plan's acts, and after each of them and at the
 * end what must hold.
 *
 *   1. databases, Understudy, the shadow follows, clients at work
 *   2. per act (act.ts): points armed, operation begun, faults made when their points are reached, taken back when the
 *      operation has ended or they have lasted long enough; then at rest (rest.ts): one side writable, status true, every
 *      client goes on
 *   3. clients stopped; both sides come to hold the same rows; the books are audited
 *   4. `remove` or `finalize`, and nothing of Understudy is left (ending.ts)
 */
import { QUIET, playAct } from './act.js';
import { playEnding } from './ending.js';
import { Faults } from './faults.js';
import type { Plan } from './plan.js';
import { Scene } from './scene.js';
import type { Stage } from './stage.js';
import type { Subject } from './subject.js';

export class Run {
  readonly scene: Scene;
  readonly #faults: Faults;

  constructor(stage: Stage, plan: Plan, database: string, subject: Subject) {
    this.scene = new Scene(stage, plan, database, subject);
    this.#faults = new Faults(this.scene);
  }

  async play(): Promise<void> {
    const { scene } = this;
    const { subject, plan, workers, findings, arrangement } = scene;
    try {
      await subject.start();
      scene.done('started');
      if (!(await scene.following())) return;
      scene.done('following');
      for (const worker of workers) worker.start();
      if (!(await scene.progress('at the start'))) return;
      scene.done('progress');
      scene.settledSince(0, new Map(arrangement.subsets.map((subset) => [subset, ['source']])));
      if (plan.leads === 'destination')
        await playAct(scene, this.#faults, { ...QUIET, subset: plan.acts[0]?.subset ?? 0 });
      for (const act of plan.acts) {
        if (findings.length > 0) break;
        await playAct(scene, this.#faults, act);
      }
    } finally {
      await Promise.all(workers.map((worker) => worker.stop()));
    }
    scene.unsettled(arrangement.subsets);
    await playEnding(scene, this.#faults);
  }
}
