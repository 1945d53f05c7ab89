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
  const lines = [HEADER];
  let sections: readonly string[] = [];
  for (const key of configKeys()) {
    const parents = key.path.slice(0, -1);
    const name = key.path.at(-1) ?? '';
    for (const [depth, parent] of parents.entries()) {
      if (sections[depth] === parent) continue;
      sections = [...sections.slice(0, depth), parent];
      const live = configKeys().some(
        (other) => LIVE.has(other.path.join('.')) && other.path[depth] === parent,
      );
      if (depth === 0) lines.push('');
      lines.push(`${'  '.repeat(depth)}${live ? '' : '# '}${parent}:`);
    }
    sections = parents;
    const indent = '  '.repeat(parents.length);
    const live = LIVE.has(key.path.join('.'));
    lines.push(`${indent}# ${key.description}`, `${indent}${live ? '' : '# '}${name}: ${valueText(key)}`);
  }
  return `${lines.join('\n').replaceAll('\n\n\n', '\n\n')}\n`;
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
