/**
 * Cutovers and rollbacks under faults, with an auditor: `npm run chaos -- --runs N --seed S [--only FAULT]
 * [--subsets N] [--patience N] [--json]`.
 * Each run is drawn from its own seed, which is printed; docs/chaos.md says what is done and how to play one again.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { FAULTS, drawPlan, type FaultName } from './chaos/plan.js';
import { SUBSET_COUNTS, type SubsetCount } from './chaos/arrangement.js';
import { playRun, type RunReport } from './chaos/play.js';
import { STARVED_SHARE, lineOf, tallyOf } from './chaos/tally.js';
import { Stage } from './chaos/stage.js';
import { describeMachine, machineLines } from './support/machine.js';
import { Output } from './support/output.js';

const KEEP_IN = join('build', 'chaos');

interface Settings {
  readonly runs: number;
  readonly seed: number;
  readonly only: string | undefined;
  readonly seconds: number;
  readonly toxiproxyUrl: string | undefined;
  readonly json: boolean;
  /** Of every run; undefined: as the seed says. */
  readonly subsets: SubsetCount | undefined;
  /** So many times as long may everything take. */
  readonly patience: number;
}

function readSettings(): Settings {
  const { values } = parseArgs({
    options: {
      runs: { type: 'string', default: '20' },
      seed: { type: 'string', default: '1' },
      only: { type: 'string' },
      seconds: { type: 'string', default: '0' },
      toxiproxy: { type: 'string' },
      json: { type: 'boolean', default: false },
      subsets: { type: 'string' },
      patience: { type: 'string', default: '1' },
    },
  });
  const whole = (name: 'runs' | 'seed' | 'seconds' | 'patience'): number => {
    const value = Number(values[name]);
    if (!Number.isSafeInteger(value) || value < 0)
      throw new Error(`--${name} takes a whole number, not ${values[name]}`);
    return value;
  };
  const { only } = values;
  if (only !== undefined && !FAULTS.some((name) => name.startsWith(only))) {
    throw new Error(`--only takes a fault or its beginning: ${FAULTS.join(', ')}`);
  }
  const subsets = SUBSET_COUNTS.find((count) => String(count) === values.subsets);
  if (values.subsets !== undefined && subsets === undefined)
    throw new Error(`--subsets takes ${SUBSET_COUNTS.join(', ')}`);
  return {
    subsets,
    patience: Math.max(1, whole('patience')),
    runs: whole('runs'),
    seed: whole('seed'),
    seconds: whole('seconds'),
    only,
    toxiproxyUrl: values.toxiproxy,
    json: values.json,
  };
}

async function main(): Promise<void> {
  const settings = readSettings();
  const output = new Output(settings.json);
  const machine = describeMachine();
  for (const text of machineLines(machine)) output.line(text);
  mkdirSync(KEEP_IN, { recursive: true });
  const { patience, toxiproxyUrl } = settings;
  const stage = await Stage.open({ patience, ...(toxiproxyUrl === undefined ? {} : { toxiproxyUrl }) });
  for (const [name, why] of stage.skipped) output.line(`skipped: ${name}, as ${why}`);
  const without: ReadonlySet<FaultName> = new Set(stage.skipped.keys());
  const reports: RunReport[] = [];
  const interrupted = { value: false };
  process.once('SIGINT', () => (interrupted.value = true));
  // Servers outlive a process that just ends.
  process.once('SIGTERM', () => void stage[Symbol.asyncDispose]().finally(() => process.exit(1)));
  const startedMs = performance.now();
  const inTime = (): boolean =>
    settings.seconds === 0 || performance.now() - startedMs < settings.seconds * 1000;
  try {
    for (let index = 0; index < settings.runs && !interrupted.value && inTime(); index++) {
      const plan = drawPlan(settings.seed + index, {
        without,
        ...(settings.only === undefined ? {} : { only: settings.only }),
        ...(settings.subsets === undefined ? {} : { subsets: settings.subsets }),
      });
      const report = await playRun(stage, plan, { keepIn: KEEP_IN });
      reports.push(report);
      output.line(lineOf(report));
      for (const { problem, detail } of report.findings) output.line(`     ${problem}: ${detail}`);
      if (report.findings.length > 0) {
        const only =
          (settings.only === undefined ? '' : ` --only ${settings.only}`) +
          (settings.subsets === undefined ? '' : ` --subsets ${settings.subsets}`) +
          (patience === 1 ? '' : ` --patience ${patience}`);
        output.line(
          `     again: npm run chaos -- --runs 1 --seed ${report.seed}${only}; its log is ${report.kept ?? 'lost'}`,
        );
      }
    }
  } finally {
    await stage[Symbol.asyncDispose]();
  }
  const tally = tallyOf(reports);
  const found = new Set(tally.findings.map(({ seed }) => seed));
  output.line();
  output.line(
    `${tally.runs} runs, ${tally.acts} operations, ${tally.statements} statements, ${found.size} runs with findings`,
  );
  if (tally.starved.length > 0)
    output.line(
      `${tally.starved.length} more are not judged: something took too long, and for five seconds more than ` +
        `${Math.round(STARVED_SHARE * 100)} % of the time that the run could have used went to others; seeds ${tally.starved.join(', ')}`,
    );
  output.line(`outcomes    ${listed(tally.outcomes)}`);
  output.line(`faults      ${listed(tally.faults)}`);
  await output.result('chaos', { settings, machine, tally, reports });
  if (found.size > 0) process.exitCode = 1;
}

const listed = (counts: Readonly<Record<string, number>>): string =>
  Object.entries(counts)
    .sort(([a], [b]) => a.localeCompare(b))
    .map(([name, count]) => `${name} ${count}`)
    .join(', ');

await main();
