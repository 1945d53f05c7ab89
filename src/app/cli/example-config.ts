/** The commented example that `init` writes, made from the schema so that it can't fall behind it. */
import { stringify } from 'yaml';
import { configKeys, environmentName, type ConfigKey } from '../config/schema.js';

const HEADER = `# Understudy's configuration. Every key is listed; those commented out show their default or an example.
# \${NAME} takes a value from the environment, \${NAME:-fallback} where it may be absent.
# Any key can be overridden by its variable (cutover.drainTimeoutMs: UNDERSTUDY_CUTOVER_DRAIN_TIMEOUT_MS)
# or by a flag (--set cutover.drainTimeoutMs=3000).
`;

/** Keys that stand there uncommented: without them nothing runs. */
const LIVE = new Set(['source.url', 'destination.url', 'listen.port', 'admin.port']);

export function exampleConfig(): string {
  const lines = [HEADER.trimEnd()];
  let open: readonly string[] = [];
  for (const key of configKeys()) {
    const parents = key.path.slice(0, -1);
    const live = LIVE.has(key.path.join('.'));
    // Where a whole section is commented out, one `# ` in front of each of its lines is all there is to remove.
    const hidden = parents.findIndex((_, depth) => !isLive(key.path.slice(0, depth + 1)));
    const write = (depth: number, text: string, commented: boolean): void => {
      const outer = commented && hidden >= 0 ? Math.min(hidden, depth) : depth;
      const mark = commented ? '# ' : '';
      lines.push(`${'  '.repeat(outer)}${mark}${'  '.repeat(depth - outer)}${text}`);
    };
    for (const [depth, parent] of parents.entries()) {
      if (open[depth] === parent) continue;
      open = [...open.slice(0, depth), parent];
      if (depth === 0) lines.push('');
      write(depth, `${parent}:`, hidden >= 0 && depth >= hidden);
    }
    if (parents.length === 0) lines.push('');
    open = parents;
    write(parents.length, `# ${key.description}`, hidden >= 0);
    write(parents.length, `${key.path.at(-1) ?? ''}: ${valueText(key)}`, !live);
  }
  return `${lines.join('\n')}\n`;
}

/** Whether something below stands there uncommented. */
function isLive(path: readonly string[]): boolean {
  return [...LIVE].some((name) => name.startsWith(`${path.join('.')}.`));
}

function valueText(key: ConfigKey): string {
  const value = key.default ?? key.example ?? '…';
  return stringify(value).trim();
}

/** The reference's table, one section a heading, for docs/configuration.md. */
export function configReference(): string {
  const lines: string[] = [];
  let section = '';
  for (const key of configKeys()) {
    if (key.path[0] !== section) {
      section = key.path[0] ?? '';
      lines.push(
        '',
        `### ${section}`,
        '',
        '| key | default | meaning | variable |',
        '| --- | --- | --- | --- |',
      );
    }
    const fallback = key.required
      ? 'required'
      : key.default === undefined
        ? (key.defaultText ?? 'none')
        : `\`${valueText(key)}\``;
    const cells = [
      `\`${key.path.join('.')}\``,
      fallback,
      `${key.description} Expects ${key.expected}.`.replaceAll('|', '\\|'),
      `\`${environmentName(key.path)}\``,
    ];
    lines.push(`| ${cells.join(' | ')} |`);
  }
  return lines.join('\n').trim();
}
