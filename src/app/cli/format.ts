/** Figures, bars, tables and histograms as text. */
import type { Finding } from '../../core/ports.js';
import type { StallReport } from '../../core/traffic-ports.js';

export function formatMs(ms: number): string {
  if (ms >= 60_000) return `${(ms / 60_000).toFixed(1)} min`;
  if (ms >= 10_000) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms.toFixed(ms < 10 ? 2 : 1)} ms`;
}

export function formatBytes(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit] ?? ''}`;
}

/** 1234567 → 1 234 567, with spaces that no locale reads as a decimal sign. */
export function formatCount(count: number): string {
  return String(Math.round(count)).replace(/\B(?=(\d{3})+$)/g, ' ');
}

export function formatDuration(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const days = Math.floor(seconds / 86_400);
  const hours = Math.floor((seconds % 86_400) / 3600);
  const minutes = Math.floor((seconds % 3600) / 60);
  return [days > 0 ? `${days} d` : '', hours > 0 ? `${hours} h` : '', `${minutes} min`]
    .filter((part) => part !== '')
    .join(' ');
}

/** `share` in 0…1. */
export function bar(share: number, width: number): string {
  const filled = Math.round(Math.min(1, Math.max(0, share)) * width);
  return '█'.repeat(filled) + '░'.repeat(width - filled);
}

/** Left-aligned columns; a column whose name ends in `>` is right-aligned. */
export function table(heads: readonly string[], rows: readonly (readonly string[])[]): readonly string[] {
  const right = heads.map((head) => head.endsWith('>'));
  const names = heads.map((head) => head.replace(/>$/, ''));
  const widths = names.map((name, column) =>
    Math.max(name.length, ...rows.map((row) => (row[column] ?? '').length)),
  );
  const render = (cells: readonly string[]): string =>
    widths
      .map((width, column) => {
        const cell = cells[column] ?? '';
        return right[column] === true ? cell.padStart(width) : cell.padEnd(width);
      })
      .join('  ')
      .trimEnd();
  return [render(names), ...rows.map(render)];
}

/** How long clients waited: one row a bucket, empty ends left out. */
export function stallHistogram(stall: StallReport, width = 32): readonly string[] {
  const first = stall.histogram.findIndex((bucket) => bucket.count > 0);
  if (first < 0) return ['no client had to wait'];
  const last = stall.histogram.findLastIndex((bucket) => bucket.count > 0);
  const buckets = stall.histogram.slice(first, last + 1);
  const most = Math.max(...buckets.map((bucket) => bucket.count));
  return [
    `${stall.held} sessions waited: p50 ${formatMs(stall.p50)}, p99 ${formatMs(stall.p99)}, max ${formatMs(stall.max)}`,
    ...buckets.map((bucket) => {
      const upTo = Number.isFinite(bucket.upToMs) ? `≤ ${bucket.upToMs} ms` : 'more';
      const filled = '█'.repeat(Math.ceil((bucket.count / most) * width));
      return `${upTo.padStart(12)} │${filled.padEnd(width)} ${bucket.count}`;
    }),
  ];
}

const SEVERITIES = [
  ['blocker', 'Blockers: mend these first'],
  ['warning', 'Warnings'],
  ['info', 'Good to know'],
] as const;

/** Findings grouped by severity, each with what to do; those that say the same of several objects are said once. */
export function findingLines(
  findings: readonly Finding[],
  paint: (severity: Finding['severity'], text: string) => string = (_severity, text) => text,
): readonly string[] {
  const lines: string[] = [];
  for (const [severity, title] of SEVERITIES) {
    const group = findings.filter((finding) => finding.severity === severity);
    if (group.length === 0) continue;
    lines.push(paint(severity, `${title} (${group.length})`));
    for (const [first, ...others] of alike(group)) {
      lines.push(`  ${first.side} ${first.check}: ${first.object}`, `    ${first.message}`);
      if (first.advice !== '') lines.push(`    → ${first.advice}`);
      if (others.length > 0)
        lines.push(`    The same of ${others.length} more: ${others.map(({ object }) => object).join(', ')}`);
    }
    lines.push('');
  }
  return lines;
}

/** Findings that differ in their object alone, together, each at the place of the first. */
function alike(findings: readonly Finding[]): readonly (readonly [Finding, ...Finding[]])[] {
  const groups = new Map<string, [Finding, ...Finding[]]>();
  for (const finding of findings) {
    const key = JSON.stringify([
      finding.side,
      finding.check,
      finding.message.replaceAll(finding.object, '…'),
      finding.advice === '',
    ]);
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [finding]);
    else group.push(finding);
  }
  return [...groups.values()];
}
