/**
 * Holds the forecasts and decisions to their word, on public data given by folder and on a seeded generator: each
 * figure beside its aim and beside the seasonal naive. Exits non-zero only on an error; a missed aim is a figure.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { table } from '../src/app/cli/format.js';
import { AIMS, benchTaxi, HORIZONS, type TaxiResult } from './predict/taxi.js';
import { benchKeys, KEYS_AIM, type KeysResult } from './predict/keys.js';
import { describeMachine, machineLines } from './support/machine.js';
import { Output } from './support/output.js';

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
    `${one.below} (${one.clearlyBelow} by over 1 %)`,
    KEYS_AIM.toFixed(2),
  ]);
  const heads = [
    'accesses per window>',
    'origins>',
    'predicted>',
    'persistence>',
    'origins below it>',
    'aim>',
  ];
  for (const line of table(heads, rows)) output.line(line);
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      data: { type: 'string' },
      quick: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
    },
  });
  const output = new Output(values.json);
  if (values.data === undefined || !existsSync(join(values.data, 'series'))) {
    output.line(
      `No data: give the folder that holds series/ with --data DIR${values.data === undefined ? '' : ` (there is none in ${values.data})`}. ` +
        'docs/prediction.md says what belongs there.',
    );
    return;
  }
  const machine = describeMachine();
  for (const line of machineLines(machine)) output.line(line);
  const taxi = benchTaxi(
    values.data,
    values.quick ? 12 : Number.POSITIVE_INFINITY,
    values.quick ? [] : ['lstm', 'markov'],
  );
  showTaxi(output, taxi);
  const keys = await benchKeys(values.data, values.quick ? 1_500_000 : Number.POSITIVE_INFINITY);
  showKeys(output, keys);
  await output.result('predict', {
    machine,
    keys,
    taxi: { ...taxi, result: { ...taxi.result, scores: Object.fromEntries(taxi.result.scores) } },
  });
}

await main();
