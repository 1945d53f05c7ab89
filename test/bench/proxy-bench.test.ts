import { describe, expect, it } from 'vitest';
import { compareWithAims } from '../../bench/proxy/aims.js';
import { chartOf } from '../../bench/proxy/chart.js';
import type { Cell } from '../../bench/proxy/load.js';
import { readFlags } from '../../bench/proxy/settings.js';
import { parseReport } from '../../bench/support/pgbench.js';

const spread = (median: number) => ({ median, min: median, max: median, samples: 1 });

function cell(target: string, clients: number, tps: number, p50Ms = 1): Cell {
  return {
    script: 'select',
    mode: 'extended',
    clients,
    target,
    tps: spread(tps),
    p50Ms: spread(p50Ms),
    p99Ms: spread(p50Ms * 2),
    connectMs: null,
    cpuSecondsPerThousand: null,
    serverCpuSecondsPerThousand: null,
  };
}

const verdicts = (cells: readonly Cell[]) =>
  Object.fromEntries(
    compareWithAims({ cells, copies: [], idle: [] }).map(({ aim, measured, met }) => [
      aim,
      { measured, met },
    ]),
  );

describe('the aims', () => {
  it('compare paths under the same load only, and say which load is furthest off', () => {
    const cells = [
      cell('understudy-session', 8, 90),
      cell('pgbouncer-session', 8, 100),
      { ...cell('understudy-session', 8, 120), mode: 'simple' as const },
      { ...cell('pgbouncer-session', 8, 100), mode: 'simple' as const },
      { ...cell('pgbouncer-session', 8, 1), mode: 'prepared' as const },
    ];
    expect(verdicts(cells)['session mode / PgBouncer session, tps, 8 clients']).toEqual({
      measured: '1.05 (least 0.90)',
      met: { count: 1, of: 2 },
    });
  });

  it('hold added latency against PgBouncer’s, not the latency itself', () => {
    const cells = [
      cell('direct', 1, 1000, 0.1),
      cell('pgbouncer-session', 1, 900, 0.2),
      cell('understudy-session', 1, 900, 0.15),
    ];
    expect(verdicts(cells)["added p50 / PgBouncer's, 1 client"]).toEqual({
      measured: '0.50',
      met: { count: 1, of: 1 },
    });
  });

  it('count as neither met nor missed where nothing of them was measured', () => {
    expect(verdicts([])['pipelined / direct, tps, -S, 64 clients']).toEqual({
      measured: 'not measured',
      met: null,
    });
  });
});

describe('the chart', () => {
  it('shows each path’s throughput against the direct one’s, and leaves out what was not measured', () => {
    const cells = [
      cell('direct', 1, 1000),
      cell('haproxy', 1, 800),
      cell('direct', 8, 2000),
      cell('understudy-session', 8, 1500),
    ];
    const svg = chartOf(cells, 'extended', 'a <machine>');
    expect(svg.match(/<title>.*?<\/title>/g)).toEqual([
      '<title>HAProxy (TCP): 0.80</title>',
      '<title>Understudy session: 0.75</title>',
    ]);
    expect(svg).toContain('a &lt;machine>');
    expect(svg).not.toContain('PgBouncer');
    expect(svg).not.toMatch(/NaN|Infinity/);
  });
});

describe('the flags', () => {
  it('refuse what is not known instead of leaving it out', () => {
    expect(() => readFlags(['--modes', 'simple,binary'])).toThrow(
      '--modes takes simple, extended, prepared; not binary',
    );
    expect(() => readFlags(['--rounds', '0'])).toThrow('--rounds takes whole numbers from 1; not 0');
    expect(() => readFlags(['--clients', '1,x'])).toThrow('not x');
    expect(readFlags(['--scripts', 'tpcb', '--only', 'copy']).settings).toMatchObject({
      scripts: ['tpcb'],
      parts: ['copy'],
    });
  });
});

describe("pgbench's report", () => {
  const report = [
    'number of transactions actually processed: 12',
    'number of failed transactions: 0 (0.000%)',
    'latency average = 1.500 ms',
    'average connection time = 0.700 ms',
    'tps = 12.5 (including reconnection times)',
  ].join('\n');

  it('is read whole', () => {
    expect(parseReport(report)).toEqual({
      transactions: 12,
      tps: 12.5,
      latencyMs: 1.5,
      failed: 0,
      connectMs: 0.7,
    });
  });

  it('may hold no transaction at all, but never misses a figure', () => {
    const none = 'number of transactions actually processed: 0\nnumber of failed transactions: 0 (NaN%)';
    expect(parseReport(none)).toMatchObject({ transactions: 0, tps: 0, connectMs: null });
    expect(() => parseReport(report.replace('tps', 'rate'))).toThrow('has no');
  });
});
