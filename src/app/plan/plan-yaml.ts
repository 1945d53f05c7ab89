/** The subsets that a plan proposes, as configuration. */
import type { PlanReport } from './plan-report.js';

/** What a person can paste into a configuration; comments say what each would cost, and what was not known of it. */
export function yamlLines({
  proposals,
  subsets,
  unknown,
}: Pick<PlanReport, 'proposals' | 'subsets' | 'unknown'>): readonly string[] {
  const notKnown = unknown.map((one) => comment(`Not known: ${one}`));
  if (proposals.length === 0)
    return [
      '# No subsets are proposed: they are configured already, or everything hangs together.',
      comment(`Groups by use: ${subsets.map(({ subset }) => subset).join(', ') || 'none'}.`),
      ...notKnown,
    ];
  return [
    '# Tables that are named nowhere are the subset `rest`.',
    ...notKnown,
    'subsets:',
    ...proposals.flatMap(({ name, tables, groups, crossing }) => [
      `  ${comment(`${groups.join(' and ')}: at most ${(crossing * 100).toFixed(1)} % of its transactions touch what is outside`)}`,
      `  ${name}:`,
      '    tables:',
      ...tables.map((table) => `      - ${JSON.stringify(table)}`),
    ]),
  ];
}

/** On one line, whatever a table is called. */
function comment(text: string): string {
  return `# ${text.replace(/[\r\n]+/g, ' ')}`;
}
