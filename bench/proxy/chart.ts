/** The figures as a chart: throughput against the direct way's, one group of bars for each load. */
import type { Cell } from './load.js';
import type { Mode } from '../support/pgbench.js';

const WIDTH = 900;
const LEFT = 52;
const PLOT_HEIGHT = 190;
const PANEL_GAP = 58;
const TOP = 74;
const BAR_GAP = 2;

/** Distinct in light and dark, and to the colour-blind (Okabe and Ito); the proxy's own modes stand out. */
const SERIES = [
  ['haproxy', 'HAProxy (TCP)', '#999999'],
  ['pgbouncer-session', 'PgBouncer session', '#56b4e9'],
  ['pgbouncer-transaction', 'PgBouncer transaction', '#0072b2'],
  ['understudy-session', 'Understudy session', '#e69f00'],
  ['understudy-transaction', 'Understudy transaction', '#d55e00'],
  ['understudy-pipelined', 'Understudy pipelined', '#009e73'],
] as const;

const TITLES = { select: 'pgbench -S', tpcb: 'pgbench, TPC-B-like' } as const;

/** An SVG that follows the reader's colour scheme. `mode`: the query mode shown; one chart can't hold all. */
export function chartOf(cells: readonly Cell[], mode: Mode, subtitle: string): string {
  const shown = cells.filter((cell) => cell.mode === mode);
  const series = SERIES.filter(([name]) => shown.some((cell) => cell.target === name));
  const scripts = (['select', 'tpcb'] as const).filter((script) =>
    shown.some((cell) => cell.script === script),
  );
  const panels = scripts.map((script, index) =>
    panel(
      shown.filter((cell) => cell.script === script),
      series,
      TOP + index * (PLOT_HEIGHT + PANEL_GAP),
      `${TITLES[script]}, -M ${mode}`,
    ),
  );
  const height = TOP + scripts.length * (PLOT_HEIGHT + PANEL_GAP);
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" role="img" aria-label="Throughput against a direct connection">
<style>
text { font: 12px system-ui, sans-serif; fill: #24292f }
.small { font-size: 11px; fill: #57606a }
.value { font-size: 10px; fill: #57606a }
.grid { stroke: #d0d7de }
.direct { stroke: #57606a; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small, .value { fill: #9198a1 } .grid { stroke: #3d444d } .direct { stroke: #9198a1 }
}
</style>
<text x="${LEFT}" y="18" font-weight="600">Throughput against a direct connection (1.0)</text>
<text x="${LEFT}" y="34" class="small">${escaped(subtitle)}</text>
${legend(series)}
${panels.join('\n')}
</svg>
`;
}

type Series = readonly (typeof SERIES)[number][];

function legend(series: Series): string {
  let x = LEFT;
  return series
    .map(([, label, colour]) => {
      const entry = `<rect x="${x}" y="44" width="10" height="10" fill="${colour}"/><text x="${x + 14}" y="53" class="small">${label}</text>`;
      x += 28 + label.length * 6.2;
      return entry;
    })
    .join('\n');
}

function panel(cells: readonly Cell[], series: Series, top: number, title: string): string {
  const clients = [...new Set(cells.map((cell) => cell.clients))];
  const ratioOf = (target: string, count: number): number | undefined => {
    const pick = (name: string): number | undefined =>
      cells.find((cell) => cell.target === name && cell.clients === count)?.tps.median;
    const own = pick(target);
    const direct = pick('direct');
    return own === undefined || direct === undefined ? undefined : own / direct;
  };
  const all = series.flatMap(([name]) => clients.map((count) => ratioOf(name, count) ?? 0));
  const most = Math.max(1, Math.ceil(Math.max(...all) * 2 + 0.2) / 2);
  const bottom = top + PLOT_HEIGHT;
  const y = (value: number): number => bottom - (value / most) * (PLOT_HEIGHT - 24);
  const groupWidth = (WIDTH - LEFT - 10) / clients.length;
  const barWidth = Math.min(26, (groupWidth - 24) / series.length - BAR_GAP);
  const parts = [`<text x="${LEFT}" y="${top + 10}" font-weight="600">${escaped(title)}</text>`];
  for (let value = 0; value <= most; value += 0.5) {
    const kind = value === 1 ? 'direct' : 'grid';
    parts.push(
      `<line class="${kind}" x1="${LEFT}" x2="${WIDTH - 10}" y1="${y(value).toFixed(1)}" y2="${y(value).toFixed(1)}"/>`,
      `<text class="small" x="${LEFT - 8}" y="${(y(value) + 4).toFixed(1)}" text-anchor="end">${value.toFixed(1)}</text>`,
    );
  }
  for (const [group, count] of clients.entries()) {
    const middle = LEFT + groupWidth * (group + 0.5);
    const first = middle - (series.length * (barWidth + BAR_GAP)) / 2;
    parts.push(
      `<text class="small" x="${middle.toFixed(1)}" y="${bottom + 16}" text-anchor="middle">${count} ${count === 1 ? 'client' : 'clients'}</text>`,
    );
    for (const [index, [name, label, colour]] of series.entries()) {
      const ratio = ratioOf(name, count);
      if (ratio === undefined) continue;
      const x = first + index * (barWidth + BAR_GAP);
      const height = bottom - y(ratio);
      parts.push(
        `<rect x="${x.toFixed(1)}" y="${y(ratio).toFixed(1)}" width="${barWidth.toFixed(1)}" height="${height.toFixed(1)}" fill="${colour}"><title>${label}: ${ratio.toFixed(2)}</title></rect>`,
        `<text class="value" x="${(x + barWidth / 2).toFixed(1)}" y="${(y(ratio) - 3).toFixed(1)}" text-anchor="middle">${ratio.toFixed(2)}</text>`,
      );
    }
  }
  return parts.join('\n');
}

function escaped(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
}
