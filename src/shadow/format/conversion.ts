/**
 * Which types a column may change between the sides, and how a value goes from one to the other: pure.
 *
 * A conversion is allowed only where each value of the source has a form on the destination from which the source's
 * own value can be made again. The way back may still meet a value that the destination took after the switch and the
 * source has no form for (an id past 2³¹): the server refuses it there, and the lane names it and waits.
 *
 * Values travel as their output text in the stream and as the destination's binary form in the copy, so each conversion
 * says both what reads the destination's value from a column of the source, and what makes a value from a text of the
 * other side. Every cast is one of the server's own; nothing is computed here.
 */
import type { ColumnTypeFormat } from '../../core/format-ports.js';
import { quoteLiteral } from '../../core/postgres.js';

export interface ColumnConversion {
  readonly sourceType: string;
  readonly destinationType: string;
  /** No two texts of one value differ between the sides, and the server casts each side's text to the other's type. */
  readonly sameText: boolean;
  /** The zone whose clock a local time shows. */
  readonly zone?: string;
  /** Blanks at the end of a text are padding on the source, and so not kept on the way back. */
  readonly losesBlanks?: boolean;
  /** SQL for the destination's value of `column`, a column of the source. */
  readonly fromSource: (column: string) => string;
  /** SQL for the destination's value of `text`, the source's output as text. */
  readonly toDestination: (text: string) => string;
  /**
   * SQL for the source's value of `text`, the destination's output as text. It is left to the assignment to refuse what
   * is too long: a cast to `varchar(5)` would cut it off.
   */
  readonly toSource: (text: string) => string;
}

export type ConversionOutcome =
  | { readonly kind: 'same' }
  | { readonly kind: 'converted'; readonly conversion: ColumnConversion }
  | { readonly kind: 'refused'; readonly reason: string; readonly advice: string };

interface TypeParts {
  readonly base: string;
  /** `(10)`, `(12,2)`: the numbers; empty without. */
  readonly modifiers: readonly number[];
  readonly array: boolean;
}

const ALIASES: ReadonlyMap<string, string> = new Map([
  ['int', 'integer'],
  ['int2', 'smallint'],
  ['int4', 'integer'],
  ['int8', 'bigint'],
  ['varchar', 'character varying'],
  ['char', 'character'],
  ['bpchar', 'character'],
  ['timestamptz', 'timestamp with time zone'],
  ['timestamp', 'timestamp without time zone'],
]);

/** `varchar(10)`, `timestamp(3) with time zone`, `int[]`; null for what is not written like that. */
export function typeParts(type: string): TypeParts | null {
  const match = /^([a-z][a-z0-9 ]*?)\s*(?:\(\s*(\d+)\s*\))?((?:\s+with(?:out)? time zone)?)\s*(\[\])?$/.exec(
    type.trim().toLowerCase(),
  );
  if (match === null) return null;
  const [, name = '', length, zone = '', array] = match;
  const plain = `${name.trim()}${zone.replaceAll(/\s+/g, ' ')}`;
  return {
    base: ALIASES.get(plain) ?? plain,
    modifiers: length === undefined ? [] : [Number(length)],
    array: array !== undefined,
  };
}

/** As `format_type` prints it. */
function typeText({ base, modifiers, array }: TypeParts): string {
  const length = modifiers.length === 0 ? '' : `(${modifiers.join(',')})`;
  const [word = '', ...rest] = base.split(' ');
  const name = word === 'timestamp' ? [`timestamp${length}`, ...rest].join(' ') : `${base}${length}`;
  return `${name}${array ? '[]' : ''}`;
}

const INTEGERS: readonly string[] = ['smallint', 'integer', 'bigint'];
const STRINGS: readonly string[] = ['character', 'character varying', 'text'];
const TIMESTAMP = 'timestamp without time zone';
const TIMESTAMPTZ = 'timestamp with time zone';

const SUPPORTED =
  'What can be mapped: smallint and int to a wider integer; varchar(n) and char(n) to text or a longer varchar; ' +
  'json to jsonb; timestamp to timestamptz with a zone.';

/** How a column of `sourceType` (as `format_type` prints it) becomes what `wanted` asks for. */
export function conversionOf(sourceType: string, wanted: ColumnTypeFormat): ConversionOutcome {
  const to = typeParts(wanted.type);
  const from = typeParts(sourceType);
  if (to === null || from === null) {
    return refused(`${sourceType} to ${wanted.type} is not a mapping that Understudy knows`, SUPPORTED);
  }
  const destinationType = typeText(to);
  if (wanted.zone !== undefined && to.base !== TIMESTAMPTZ) {
    return refused('a zone is of use only for timestamptz', 'Leave `zone` out, or map to timestamptz.');
  }
  if (destinationType === typeText(from)) return { kind: 'same' };
  const pair = { sourceType, destinationType };
  if (INTEGERS.includes(from.base) && INTEGERS.includes(to.base)) return integers(from, to, pair);
  if (STRINGS.includes(from.base) && STRINGS.includes(to.base)) return strings(from, to, pair);
  if (from.base === 'json' && to.base === 'jsonb' && !from.array && !to.array) {
    return converted(pair, {
      fromSource: (column) => `${column}::pg_catalog.jsonb`,
      toDestination: (text) => `${text}::pg_catalog.jsonb`,
      toSource: (text) => `${text}::pg_catalog.json`,
    });
  }
  if (from.base === TIMESTAMP && to.base === TIMESTAMPTZ) return timestamps(from, to, pair, wanted);
  return refused(
    `${sourceType} to ${destinationType} can’t be undone, or is not a mapping that Understudy knows`,
    SUPPORTED,
  );
}

type Pair = Pick<ColumnConversion, 'sourceType' | 'destinationType' | 'zone' | 'losesBlanks'>;
type Ways = Pick<ColumnConversion, 'fromSource' | 'toDestination' | 'toSource'>;

function converted(pair: Pair, ways: Ways, sameText = false): ConversionOutcome {
  return { kind: 'converted', conversion: { ...pair, sameText, ...ways } };
}

function refused(reason: string, advice: string): ConversionOutcome {
  return { kind: 'refused', reason, advice };
}

function integers(from: TypeParts, to: TypeParts, pair: Pair): ConversionOutcome {
  if (from.array !== to.array) return refused('an array stays an array', SUPPORTED);
  if (INTEGERS.indexOf(to.base) < INTEGERS.indexOf(from.base)) {
    return refused(
      `${pair.destinationType} has no room for every ${pair.sourceType}`,
      'Map to a wider integer, or leave the column as it is.',
    );
  }
  return converted(
    pair,
    {
      fromSource: (column) => `${column}::${pair.destinationType}`,
      toDestination: (text) => `${text}::${pair.destinationType}`,
      toSource: (text) => `${text}::${pair.sourceType}`,
    },
    true,
  );
}

function strings(from: TypeParts, to: TypeParts, pair: Pair): ConversionOutcome {
  if (from.array || to.array) return refused('arrays of strings are not mapped', SUPPORTED);
  if (to.base === 'character') {
    return refused('char(n) pads what it holds', 'Map to text or varchar.');
  }
  const room = to.modifiers[0];
  // char without a length is char(1).
  const held = from.modifiers[0] ?? (from.base === 'character' ? 1 : Infinity);
  if (to.base === 'character varying' && room !== undefined && room < held) {
    return refused(
      `${pair.destinationType} has no room for every ${pair.sourceType}`,
      'Map to text or a longer varchar, or leave the column as it is.',
    );
  }
  if (from.base === 'character') {
    // Its output is padded, its value is not: only a cast from the type itself takes the blanks away.
    return converted(
      { ...pair, losesBlanks: true },
      {
        fromSource: (column) => `${column}::pg_catalog.text`,
        toDestination: (text) => `${text}::${pair.sourceType}::pg_catalog.text`,
        toSource: (text) => text,
      },
    );
  }
  return converted(
    pair,
    {
      fromSource: (column) => `${column}::${pair.destinationType}`,
      toDestination: (text) => `${text}::${pair.destinationType}`,
      toSource: (text) => (held === Infinity ? text : refusedBeyond(text, held)),
    },
    true,
  );
}

/** Blanks past a column's length are cut off without a word, by assignment too; anything else there is refused. */
function refusedBeyond(text: string, length: number): string {
  return `CASE WHEN pg_catalog.char_length(${text}) > ${length} THEN ${text} || '.' ELSE ${text} END`;
}

/** Zones whose clock never shows an hour twice, so that every instant has a local time of its own. */
const FIXED_ZONE = /^(utc|gmt|zulu|universal|uct|etc\/[a-z0-9+-]+)$/i;
const ZONE_NAME = /^[A-Za-z][A-Za-z0-9_+/-]*$/;

function timestamps(from: TypeParts, to: TypeParts, pair: Pair, wanted: ColumnTypeFormat): ConversionOutcome {
  const { zone, repeatedHour } = wanted;
  if (from.array || to.array) return refused('arrays of timestamps are not mapped', SUPPORTED);
  if ((from.modifiers[0] ?? 6) !== (to.modifiers[0] ?? 6)) {
    return refused(
      'the precision would change, and what is rounded can’t be undone',
      `Map to ${typeText({ ...to, modifiers: from.modifiers })}.`,
    );
  }
  if (zone === undefined) {
    return refused(
      'which zone’s clock its values show is not said',
      'Add `zone`, e.g. { type: timestamptz, zone: UTC }.',
    );
  }
  if (!ZONE_NAME.test(zone)) {
    return refused(`${zone} is not the name of a zone`, 'Take a name such as UTC or Europe/Dublin.');
  }
  if (!FIXED_ZONE.test(zone) && repeatedHour !== 'accept') {
    return refused(
      `the clock of ${zone} may show an hour twice, as when summer time ends: an instant in it can’t be told from the one an hour later on the way back`,
      'Take a zone without summer time, or accept that with `repeatedHour: accept`.',
    );
  }
  const at = `AT TIME ZONE ${quoteLiteral(zone)}`;
  return converted(
    { ...pair, zone },
    {
      fromSource: (column) => `(${column} ${at})::${pair.destinationType}`,
      toDestination: (text) => `(${text}::${pair.sourceType} ${at})::${pair.destinationType}`,
      toSource: (text) => `(${text}::${pair.destinationType} ${at})::${pair.sourceType}`,
    },
  );
}
