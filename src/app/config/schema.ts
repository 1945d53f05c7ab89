/** Every key of the configuration, with its check, its default and its description. The reference is made from it. */
import { z } from 'zod';
import { autopilotSection } from './sections/autopilot.js';
import { captureSection } from './sections/capture.js';
import { cutoverSection } from './sections/cutover.js';
import {
  migrationSection,
  listenSection,
  sourceSection,
  destinationSection,
  adminSection,
  authSection,
} from './sections/endpoints.js';
import { proxySection, limitsSection } from './sections/proxy.js';
import { shadowSection } from './sections/shadow.js';
import { choice, leaves, subsetMap, type LeafInfo } from './leaf.js';

export const sections = {
  migration: migrationSection,
  listen: listenSection,
  source: sourceSection,
  destination: destinationSection,
  admin: adminSection,
  auth: authSection,
  capture: captureSection,
  shadow: shadowSection,
  cutover: cutoverSection,
  autopilot: autopilotSection,
  proxy: proxySection,
  limits: limitsSection,
  subsets: subsetMap(
    'Parts of the database that are switched one at a time: a name, and its `tables` as `schema.table`. Tables named nowhere are the subset `rest`.',
    '{"orders": {"tables": ["public.orders", "public.line"]}}',
  ),
  log: z.strictObject({
    level: choice(
      'Least severe message that is logged.',
      ['debug', 'info', 'warn', 'error', 'silent'],
      'info',
    ),
  }),
} as const;

export const configSchema = z.strictObject(sections);

type Sections = typeof sections;
/** What a person writes: only `source` and `destination` are required. */
export type UnderstudyConfig = {
  readonly [K in 'source' | 'destination']: z.input<Sections[K]>;
} & {
  readonly [K in Exclude<keyof Sections, 'source' | 'destination'>]?: z.input<Sections[K]> | undefined;
};
export type ParsedConfig = z.output<typeof configSchema>;

export interface ConfigKey extends LeafInfo {
  readonly path: readonly string[];
  readonly default: unknown;
  readonly required: boolean;
}

/** Every leaf, in the order of the schema. */
export function configKeys(): readonly ConfigKey[] {
  return collectKeys(configSchema, []);
}

function collectKeys(schema: z.ZodType, path: readonly string[]): readonly ConfigKey[] {
  const info = leaves.get(schema);
  if (info !== undefined) {
    const absent = schema.safeParse(undefined);
    return [{ ...info, path, default: absent.success ? absent.data : undefined, required: !absent.success }];
  }
  const wrapped = schema instanceof z.ZodOptional || schema instanceof z.ZodPrefault;
  const inner = wrapped ? (schema.unwrap() as z.ZodType) : schema;
  if (!(inner instanceof z.ZodObject)) return [];
  return Object.entries(inner.shape as Readonly<Record<string, z.ZodType>>).flatMap(([name, child]) =>
    collectKeys(child, [...path, name]),
  );
}

/** `UNDERSTUDY_CUTOVER_DRAIN_TIMEOUT_MS` for `cutover.drainTimeoutMs`. */
export function environmentName(path: readonly string[]): string {
  return `UNDERSTUDY_${path.map((part) => part.replace(/[A-Z]/g, '_$&').toUpperCase()).join('_')}`;
}
