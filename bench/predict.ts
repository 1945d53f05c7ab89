/**
 * Holds the forecasts and decisions to their word, on public data given by folder and on a seeded generator: each
 * figure beside its aim and beside the seasonal naive. Exits non-zero only on an error; a missed aim is a figure.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { RunOwner } from '../src/app/demo/run-owner.js';
import { table } from '../src/app/cli/format.js';
import { AIMS, benchTaxi, HORIZONS, type TaxiResult } from './predict/taxi.js';
import { benchKeys, KEYS_AIM, type KeysResult } from './predict/keys.js';
import { benchGenerated, type GeneratedResult } from './predict/generated.js';
import { benchLive, LIVE_FIGURES, type LiveResult } from './predict/live.js';
import { benchLowWindow, type LowWindowResult } from './predict/low-window.js';
import { benchRefit, REFIT_AIM_SECONDS, type RefitResult } from './predict/refit.js';
import { readSeries } from './predict/series-files.js';
import { describeMachine, machineLines } from './support/machine.js';
import { Output } from './support/output.js';
import { probeLine, probeSpeed } from './support/speed-probe.js';

const HALF_HOUR_MS = 1_800_000;
const percent = (share: number): string => `${(share * 100).toFixed(2)} %`;

function showTaxi(output: Output, { result, without, seconds }: TaxiResult): void {
  output.line(
    `\nNYC taxi, hourly: ${result.origins} weekly origins, ${result.scores.get('ensemble')?.[0]?.targets ?? 0} targets, ${seconds.toFixed(1)} s`,
  );
  const rows: string[][] = [];
  const add = (name: string, scores: readonly { wape: number; logMse: number }[]): void => {
    rows.push([
      name,
      ...scores.map((one) => percent(one.wape)),
      ...scores.map((one) => one.logMse.toFixed(4)),
    ]);
  };
  for (const [name, scores] of result.scores) add(name, scores);
  for (const [name, scores] of Object.entries(without)) add(`without ${name}`, scores);
  rows.push(['aim', ...AIMS.wape.map(percent), ...AIMS.logMse.map((aim) => aim.toFixed(4))]);
  const heads = [...HORIZONS.map((h) => `WAPE ${h} h`), ...HORIZONS.map((h) => `log-MSE ${h} h`)];
  for (const line of table(['method', ...heads.map((head) => `${head}>`)], rows)) output.line(line);
  output.line(`90 % intervals hold ${result.coverage.map(percent).join(', ')} (aim 87–93 %)`);
}

function showKeys(output: Output, results: readonly KeysResult[]): void {
  output.line(
    `\norm-busy: accesses of the next window covered by the predicted 1,000 keys, of a clairvoyant's`,
  );
  const rows = results.map((one) => [
    String(one.window),
    String(one.origins),
    one.predicted.toFixed(4),
    one.persistence.toFixed(4),
    one.counted.toFixed(4),
    `${one.below} (${one.clearlyBelow} by over 1 %)`,
    KEYS_AIM.toFixed(2),
  ]);
  const heads = [
    'accesses per window>',
    'origins>',
    'predicted>',
    'persistence>',
    'all so far>',
    'origins below it>',
    'aim>',
  ];
  for (const line of table(heads, rows)) output.line(line);
}

const TWEETS = ['AAPL', 'AMZN', 'CRM', 'FB', 'GOOG'] as const;
const LOW_WINDOW_AIMS = { taxi: 0.985, tweets: 0.89 } as const;

interface LowWindows {
  readonly taxi: LowWindowResult;
  readonly tweets: readonly LowWindowResult[];
}

function lowWindows(folder: string, quick: boolean): LowWindows {
  const taxi = readSeries(folder, 'nyc_taxi.csv', HALF_HOUR_MS, 'sum');
  const names = quick ? TWEETS.slice(0, 1) : TWEETS;
  const daysMax = quick ? 14 : Number.POSITIVE_INFINITY;
  return {
    taxi: benchLowWindow('taxi', taxi, 2, 1, 42, daysMax),
    tweets: names.map((name) => {
      const series = readSeries(folder, `Twitter_volume_${name}.csv`, HALF_HOUR_MS / 6, 'sum');
      return benchLowWindow(name, series, 6, 6, 28, daysMax);
    }),
  };
}

function showLowWindows(output: Output, { taxi, tweets }: LowWindows): void {
  output.line(`\nquietest window of tomorrow: days on which the choice was right`);
  const days = tweets.reduce((sum, one) => sum + one.days, 0);
  const methods = Object.keys(taxi.correct);
  const share = (hits: number, of: number): string =>
    `${hits} of ${of}, ${percent(of === 0 ? 0 : hits / of)}`;
  const rows = methods.map((method) => [
    method,
    share(taxi.correct[method] ?? 0, taxi.days),
    share(
      tweets.reduce((sum, one) => sum + (one.correct[method] ?? 0), 0),
      days,
    ),
  ]);
  rows.push(['aim', percent(LOW_WINDOW_AIMS.taxi), percent(LOW_WINDOW_AIMS.tweets)]);
  for (const line of table(['method', 'taxi, 60 min>', 'tweets, 30 min>'], rows)) output.line(line);
}

function showGenerated(output: Output, { hotSet, priority, divergence, grouping }: GeneratedResult): void {
  output.line('\ngenerated application (seeded): six modules of three tables, truth known');
  output.line(
    `hot set       recall ${percent(hotSet.recall)} of the clairvoyant's keys; ${percent(hotSet.heatShare)} of the next hour's heat (clairvoyant ${percent(hotSet.clairvoyantShare)}), ${hotSet.hours} subset hours; as many keys by the last day's accesses: recall ${percent(hotSet.dayRecall)}, heat ${percent(hotSet.dayHeatShare)}`,
  );
  output.line(
    `priority      Kendall's τ ${priority.tau.toFixed(3)} with the clairvoyant order by next day's heat (yesterday's order: ${priority.naiveTau.toFixed(3)}), ${priority.origins} days`,
  );
  output.line(
    `divergence    ${divergence.trueAlarms} true alarms, ${divergence.falseAlarms} false, ${divergence.missed} missed, in ${divergence.subsetHours} subset hours`,
  );
  output.line(
    `grouping      ${grouping.groups} groups${grouping.asPlanted ? ', as planted' : ''}; ${percent(grouping.crossingShare)} of transactions cross (${percent(grouping.crossingSharePerTable)} if each table went alone)`,
  );
}

function showRefit(output: Output, { subsets, seconds, cpuSeconds }: RefitResult): void {
  output.line(
    `\nfull refit of ${subsets} subsets with eight weeks of hours: ${cpuSeconds.toFixed(1)} s of processor time, ${seconds.toFixed(1)} s (aim for 200: ${REFIT_AIM_SECONDS} s)`,
  );
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      data: { type: 'string' },
      live: { type: 'string' },
      quick: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
    },
  });
  const output = new Output(values.json);
  if (values.live !== undefined) return await live(Number(values.live), output);
  if (values.data === undefined || !existsSync(join(values.data, 'series'))) {
    output.line(
      `No data: give the folder that holds series/ with --data DIR${values.data === undefined ? '' : ` (there is none in ${values.data})`}. ` +
        'docs/prediction.md says what belongs there.',
    );
    return;
  }
  const machine = describeMachine();
  for (const line of machineLines(machine)) output.line(line);
  const probesMs = [await probeSpeed()];
  const taxi = benchTaxi(
    values.data,
    values.quick ? 12 : Number.POSITIVE_INFINITY,
    values.quick ? [] : ['lstm', 'markov'],
  );
  showTaxi(output, taxi);
  const keys = await benchKeys(values.data, values.quick ? 1_500_000 : Number.POSITIVE_INFINITY);
  showKeys(output, keys);
  const windows = lowWindows(values.data, values.quick);
  showLowWindows(output, windows);
  const generated = benchGenerated(1, values.quick ? 2 : 4);
  showGenerated(output, generated);
  probesMs.push(await probeSpeed());
  const refit = benchRefit(values.quick ? 20 : 200);
  showRefit(output, refit);
  probesMs.push(await probeSpeed());
  output.line(probeLine(probesMs));
  await output.result('predict', {
    machine,
    probesMs,
    keys,
    windows,
    generated,
    refit,
    taxi: { ...taxi, result: { ...taxi.result, scores: Object.fromEntries(taxi.result.scores) } },
  });
}

function showLive(output: Output, { figures, probesMs }: LiveResult): void {
  const rows = LIVE_FIGURES.map((figure) => {
    const { samples, medianError, covered, repeatError } = figures[figure];
    const error = (share: number): string => (Number.isFinite(share) ? percent(share) : '?');
    return [figure, String(samples), error(medianError), error(covered), error(repeatError)];
  });
  rows.push(['aim', '', '≤ 20 %', '85–95 %', '']);
  output.line();
  const heads = [
    'predicted',
    'migrations>',
    'median error>',
    'within 90 % interval>',
    'one of the same size differed by>',
  ];
  for (const line of table(heads, rows)) output.line(line);
  if (probesMs.length > 0) output.line(probeLine(probesMs));
}

/** `--live N`: N real migrations, which take a few seconds each, and no data but what they make. */
async function live(runs: number, output: Output): Promise<void> {
  const machine = describeMachine();
  const owner = new RunOwner('understudy-bench-', (signal) => output.line(`${signal}: stopping`));
  try {
    for (const line of machineLines(machine)) output.line(line);
    output.line(
      'predicted from the migrations before it, with the 90 % interval; then as measured (s, s, ms)',
    );
    const result = await benchLive(runs, owner, (line) => output.line(line));
    showLive(output, result);
    await output.result('predict-live', { machine, ...result });
  } finally {
    await owner.close();
  }
}

await main();
