/**
 * The building blocks of the configuration's schema. Every leaf carries, besides its check, what a person is told
 * about it: what is expected, what it is for, and whether its value may be printed.
 */
import { z } from 'zod';

export interface LeafInfo {
  /** Completes "expected …", e.g. "a whole number from 1 to 65535". */
  readonly expected: string;
  readonly description: string;
  /** Text from the environment, a flag or a substitution is read as this. */
  readonly kind: 'string' | 'number' | 'boolean';
  /** Never printed, in messages or in `redact`. */
  readonly secret?: boolean;
  /** Printed in the reference where the default is not a plain value. */
  readonly defaultText?: string;
  /** Shown in the example file where there is no default. */
  readonly example?: string;
}

export const leaves = z.registry<LeafInfo>();

interface Wholes {
  readonly min: number;
  readonly max: number;
  readonly fallback: number;
  readonly unit?: string;
}

function wholeNumber(description: string, { min, max, fallback, unit }: Wholes) {
  const expected = `a whole number${unit === undefined ? '' : ` of ${unit}`} from ${min} to ${max}`;
  const error = `expected ${expected}`;
  return z
    .int({ error })
    .min(min, { error })
    .max(max, { error })
    .default(fallback)
    .register(leaves, { expected, description, kind: 'number' });
}

export const count = (description: string, fallback: number, range: { min?: number; max?: number } = {}) =>
  wholeNumber(description, { min: range.min ?? 1, max: range.max ?? 1_000_000, fallback });

export const milliseconds = (
  description: string,
  fallback: number,
  range: { min?: number; max?: number } = {},
) =>
  wholeNumber(description, {
    min: range.min ?? 1,
    max: range.max ?? 86_400_000,
    fallback,
    unit: 'milliseconds',
  });

export const bytes = (description: string, fallback: number, range: { min?: number; max?: number } = {}) =>
  wholeNumber(description, {
    min: range.min ?? 1024,
    max: range.max ?? 2 ** 40,
    fallback,
    unit: 'bytes',
  });

export const port = (description: string, fallback: number) =>
  wholeNumber(description, { min: 0, max: 65_535, fallback });

/** Milliseconds, or one of some words. */
export function millisecondsOr<const T extends string>(
  description: string,
  words: readonly T[],
  fallback: number | T,
) {
  const expected = `${words.join(' or ')}, or a number of milliseconds above 0`;
  const error = `expected ${expected}`;
  return z
    .union([z.enum(words), z.number().positive()], { error })
    .default(fallback as never)
    .register(leaves, { expected, description, kind: 'number' });
}

export function factor(description: string, fallback: number) {
  const expected = 'a number from 1 to 100';
  const error = `expected ${expected}`;
  return z
    .number({ error })
    .min(1, { error })
    .max(100, { error })
    .default(fallback)
    .register(leaves, { expected, description, kind: 'number' });
}

export function fraction(description: string, fallback: number) {
  const expected = 'a number from 0 to 1';
  const error = `expected ${expected}`;
  return z
    .number({ error })
    .min(0, { error })
    .max(1, { error })
    .default(fallback)
    .register(leaves, { expected, description, kind: 'number' });
}

export function flag(description: string, fallback: boolean) {
  const expected = 'true or false';
  return z
    .boolean({ error: `expected ${expected}` })
    .default(fallback)
    .register(leaves, { expected, description, kind: 'boolean' });
}

export function choice<const T extends readonly [string, ...string[]]>(
  description: string,
  values: T,
  fallback: T[number],
) {
  const expected = `one of ${values.join(', ')}`;
  return z
    .enum(values, { error: `expected ${expected}` })
    .default(fallback as never)
    .register(leaves, { expected, description, kind: 'string' });
}

export function optionalChoice<const T extends readonly [string, ...string[]]>(
  description: string,
  values: T,
  defaultText: string,
  example: T[number],
) {
  const expected = `one of ${values.join(', ')}`;
  return z
    .enum(values, { error: `expected ${expected}` })
    .optional()
    .register(leaves, { expected, description, kind: 'string', defaultText, example });
}

const notEmpty = (expected: string) =>
  z.string({ error: `expected ${expected}` }).min(1, { error: `expected ${expected}` });

export function text(description: string, fallback: string, expected = 'a text that is not empty') {
  return notEmpty(expected).default(fallback).register(leaves, { expected, description, kind: 'string' });
}

export function requiredText(description: string, info: Omit<LeafInfo, 'description' | 'kind'>) {
  return notEmpty(info.expected).register(leaves, { ...info, description, kind: 'string' });
}

export function optionalText(description: string, info: Omit<LeafInfo, 'description' | 'kind'>) {
  return notEmpty(info.expected)
    .optional()
    .register(leaves, { ...info, description, kind: 'string' });
}

export const optionalFile = (description: string, example: string) =>
  optionalText(description, { expected: 'the path of a readable file', example, defaultText: 'none' });

/** Permissions; YAML may read `0700` as a number, which is taken by its digits. */
export function octal(description: string, fallback: string) {
  const expected = 'an octal number of three digits, such as 0770';
  return z
    .union([z.string(), z.number().transform(String)], { error: `expected ${expected}` })
    .refine((text) => /^0?[0-7]{3}$/.test(text), { error: `expected ${expected}` })
    .default(fallback)
    .register(leaves, { expected, description, kind: 'string' });
}

/** `a, b=c` or a mapping: name → name. */
export function nameMap(description: string, example: string) {
  const expected = 'names, as in a, b=c, *';
  const error = `expected ${expected}`;
  const name = z.string().min(1);
  const text = pairs();
  return z
    .union([z.record(name, name), text.pipe(z.record(name, name))], { error })
    .refine((names) => !Object.hasOwn(names, '*') || names['*'] === '*', { error })
    .optional()
    .register(leaves, { expected, description, kind: 'string', defaultText: 'none', example });
}

/** `name=one of the choices`, separated by commas, or a mapping. */
export function choiceMap<const T extends string>(
  description: string,
  choices: readonly T[],
  example: string,
) {
  const expected = `names with one of ${choices.join(', ')} each, as in a=${choices[0] ?? ''}`;
  const map = z.record(z.string().min(1), z.enum(choices));
  return z
    .union([map, pairs().pipe(map)], { error: `expected ${expected}` })
    .optional()
    .register(leaves, { expected, description, kind: 'string', defaultText: 'none', example });
}

/** The destination's form of the source's tables; a mapping in the file, JSON elsewhere. */
export function tableFormats(description: string, example: string) {
  const expected = 'a mapping of tables to `name`, `columns`, `types` and `partitioning`, see docs/format.md';
  const error = (issue: { code: string; keys?: readonly string[] }): string =>
    issue.code === 'unrecognized_keys'
      ? `unknown key ${JSON.stringify(issue.keys?.[0])}: expected ${expected}`
      : `expected ${expected}`;
  const name = z.string().min(1);
  const type = z.union(
    [
      name.transform((text) => ({ type: text })),
      z.strictObject({
        type: name,
        zone: name.optional(),
        repeatedHour: z.enum(['refuse', 'accept']).optional(),
      }),
    ],
    { error: 'expected a type such as bigint, or { type: timestamptz, zone: UTC }' },
  );
  const tables = z.record(
    name.refine((key) => key.includes('.'), { error: 'expected schema.table' }),
    z.strictObject(
      {
        name: name.optional(),
        columns: z.record(name, name).optional(),
        types: z.record(name, type).optional(),
        partitioning: z
          .strictObject(
            {
              by: z.enum(['range', 'list', 'hash']),
              columns: z.array(name).min(1).max(32),
              partitions: z.union([z.number().int().min(1).max(1000), z.record(name, name)]),
            },
            {
              error:
                'expected { by: range, columns: [day], partitions: { name: bounds } }, see docs/format.md',
            },
          )
          .optional(),
      },
      { error },
    ),
    { error },
  );
  const json = z.string().transform((text, context): unknown => {
    try {
      return JSON.parse(text);
    } catch {
      context.addIssue({ code: 'custom', message: `expected ${expected}` });
      return z.NEVER;
    }
  });
  return z
    .preprocess((value) => {
      const parsed = typeof value === 'string' ? json.safeParse(value) : undefined;
      return parsed?.success === true ? parsed.data : value;
    }, tables.optional())
    .optional()
    .register(leaves, { expected, description, kind: 'string', defaultText: 'identity', example });
}

/** Names of subsets with what is said of each; a mapping in the file, JSON elsewhere. Looked at closely by config/subsets.ts. */
export function subsetMap(description: string, example: string) {
  const expected = 'a mapping of names to `tables`, see docs/subsets.md';
  return z
    .preprocess(
      (value) => {
        if (typeof value !== 'string') return value;
        try {
          return JSON.parse(value) as unknown;
        } catch {
          return value;
        }
      },
      z.record(z.string(), z.unknown(), { error: `expected ${expected}` }),
    )
    .optional()
    .register(leaves, { expected, description, kind: 'string', defaultText: 'none', example });
}

/** `a=b, c` as a mapping; what has no second part stands for itself. */
function pairs() {
  return z.string().transform((list) =>
    Object.fromEntries(
      list
        .split(',')
        .map((part) => part.trim())
        .filter((part) => part !== '')
        .map((part) => {
          const at = part.indexOf('=');
          return at === -1 ? [part, part] : [part.slice(0, at).trim(), part.slice(at + 1).trim()];
        }),
    ),
  );
}
