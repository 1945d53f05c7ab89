/** Plays one plan: the databases, the configuration, the run within its time, and what is kept of it. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ARRANGEMENTS, subsetsYaml } from './arrangement.js';
import { finding, type Finding } from './checks.js';
import { CpuWatch } from './cpu-watch.js';
import { describePlan, type Plan } from './plan.js';
import { Run } from './run.js';
import type { ActReport } from './scene.js';
import type { Stage } from './stage.js';
import { Subject } from './subject.js';
import { verdictOf, type Verdict } from './tally.js';

const RUN_TIMEOUT_MS = 150_000;
const HOLD_BUDGET_MS = 2_500;

export interface RunReport {
  readonly seed: number;
  readonly plan: string;
  readonly seconds: number;
  readonly statements: number;
  readonly errors: number;
  /** Per act: kind, outcome, and whether its faults' points were reached. */
  readonly acts: readonly ActReport[];
  readonly findings: readonly Finding[];
  readonly verdict: Verdict;
  /** See {@link CpuWatch.worstShare}. */
  readonly waitedShare: number | null;
  /** Where Understudy's output was kept, where there are findings. */
  readonly kept?: string;
  /** Milliseconds since the run began at which each of its parts was done. */
  readonly parts: Readonly<Record<string, number>>;
}
function configuration(stage: Stage, database: string, plan: Plan): string {
  const ms = (milliseconds: number): number => milliseconds * stage.patience;
  return [
    `migration: { id: chaos }`,
    `listen: { host: 127.0.0.1, port: ${stage.listenPort} }`,
    `admin: { host: 127.0.0.1, port: ${stage.adminPort} }`,
    `source: { url: '${stage.linkUrl('source', database)}' }`,
    `destination: { url: '${stage.linkUrl('destination', database)}' }`,
    `proxy: { poolMode: ${plan.poolMode}, workers: ${plan.workers} }`,
    `capture: { enabled: ${plan.capture}, flushIntervalMs: 300 }`,
    'shadow: { retryFirstMs: 50, retryMaxMs: 400, statusIntervalMs: 200, fingerprintIntervalMs: 4000 }',
    'cutover:',
    `  drainTimeoutMs: ${ms(800)}`,
    `  fenceTimeoutMs: ${ms(600)}`,
    `  markTimeoutMs: ${ms(1500)}`,
    `  holdBudgetMs: ${ms(HOLD_BUDGET_MS)}`,
    `  commitAnswerTimeoutMs: ${ms(800)}`,
    `  inDoubtTimeoutMs: ${ms(1500)}`,
    `  connectTimeoutMs: ${ms(800)}`,
    `  lagWaitMs: ${ms(2000)}`,
    ...(plan.subsets === 0 ? [] : ['  parting: accept']),
    ...subsetsYaml(ARRANGEMENTS[plan.subsets]),
    `limits: { connectTimeoutMs: ${ms(1500)}, prepareTimeoutMs: ${ms(1500)}, askTimeoutMs: ${ms(1500)} }`,
    '',
  ].join('\n');
}

export interface RunOptions {
  /** Where the output of a run with findings is kept. */
  readonly keepIn: string;
}

/** Plays one plan. Never throws for what the product does; what the harness itself can't do is a finding named so. */
export async function playRun(stage: Stage, plan: Plan, options: RunOptions): Promise<RunReport> {
  const startedMs = performance.now();
  const database = `chaos_${plan.seed}_${process.pid}`;
  const folder = await mkdtemp(join(tmpdir(), 'chaos-'));
  const yaml = configuration(stage, database, plan);
  const subject = await Subject.configure(folder, yaml, stage.adminPort);
  const run = new Run(stage, plan, database, subject);
  const { scene } = run;
  const findings: Finding[] = [];
  const watch = new CpuWatch(() => [process.pid, ...subject.pids]);
  try {
    await stage.createDatabases(database);
    const late = new Promise<'late'>((resolve) =>
      setTimeout(() => resolve('late'), RUN_TIMEOUT_MS * stage.patience).unref(),
    );
    if ((await Promise.race([run.play(), late])) === 'late') {
      findings.push(
        finding(
          'run-too-long',
          `the run was not over after ${RUN_TIMEOUT_MS * stage.patience} ms: ${JSON.stringify(scene.parts)}`,
        ),
      );
    }
  } catch (error) {
    findings.push(
      finding('harness', error instanceof Error ? (error.stack ?? error.message) : String(error)),
    );
  }
  watch.stop();
  await subject.kill();
  await stage.calm();
  stage.disk?.free();
  for (const server of Object.values(stage.servers)) await server.start();
  findings.unshift(...scene.findings);
  const kept = findings.length === 0 ? undefined : join(options.keepIn, `chaos-${plan.seed}.log`);
  if (kept !== undefined) {
    const { errors } = scene.history;
    const told = errors.map(
      (error) => `${error.atMs.toFixed(0)} ms ${error.worker} ${error.doing} ${error.code} ${error.message}`,
    );
    const parts = [
      describePlan(plan),
      JSON.stringify(scene.acts),
      JSON.stringify(findings, undefined, 1),
      ...told,
      yaml,
      subject.output,
    ];
    await writeFile(kept, parts.join('\n'));
  }
  await stage.dropDatabases(database).catch((error: unknown) => {
    findings.push(finding('harness', `databases were not dropped: ${String(error)}`));
  });
  await rm(folder, { recursive: true, force: true });
  return {
    seed: plan.seed,
    plan: describePlan(plan),
    seconds: (performance.now() - startedMs) / 1000,
    statements: scene.history.statements,
    errors: scene.history.errors.length,
    acts: scene.acts,
    parts: scene.parts,
    findings,
    verdict: verdictOf(findings, watch.worstShare),
    waitedShare: watch.worstShare,
    ...(kept === undefined ? {} : { kept }),
  };
}
