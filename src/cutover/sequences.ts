/**
 * Sequences are in neither side's change log: at a switch their state is read behind the barrier and carried over.
 *
 * Forward, in the increment's direction, by a margin: values a session took on the old side (from its CACHE, or past the
 * barrier, since nextval is no write) must not come again. Never past a bound, where the sequence would refuse to go
 * on: near one, the exact state is carried. A CYCLE sequence has no "further": it is carried exactly. Both are reported.
 * What the new side has already given out counts too: the further of both sides wins.
 */
import { REST, WHOLE_DATABASE, type SequenceState, type SubsetId } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import { quoteLiteral, quoteTable } from '../core/postgres.js';
import { readBarrier } from './barrier.js';
import type { Session } from './session.js';

export interface SequencePlan {
  readonly schema: string;
  readonly name: string;
  readonly lastValue: bigint;
  readonly isCalled: boolean;
  /** Why it was not moved by the full margin. */
  readonly note?: string;
}

/** How far a sequence had come at a moment, for its rate. */
export interface SequenceSample {
  readonly atMs: number;
  readonly states: ReadonlyMap<string, SequenceState>;
}

function keyOf(sequence: { readonly schema: string; readonly name: string }): string {
  return quoteTable(sequence);
}

/** All sequences of the user's schemas, identity columns' too; without extensions' and temporary ones. */
const DEFINITIONS_SQL = `
  SELECT n.nspname AS schema, c.relname AS name, s.seqincrement AS increment, s.seqmin AS minimum, s.seqmax AS maximum,
         s.seqcache AS cache, s.seqcycle AS cycle
    FROM pg_catalog.pg_sequence s
    JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
   WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'understudy') AND n.nspname NOT LIKE 'pg\\_%'
     AND c.relpersistence <> 't'
     AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                      WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
   ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"`;

/** All of a sequence but how far it has come. */
export type SequenceDefinition = Omit<SequenceState, 'lastValue' | 'isCalled'>;

/** By sequence: the tables whose columns own it, or take their defaults from it. */
const TIES_SQL = `
  SELECT DISTINCT sn.nspname AS schema, s.relname AS name, tn.nspname AS table_schema, t.relname AS table_name
    FROM (
      SELECT d.refobjid AS seq, f.adrelid AS tab FROM pg_catalog.pg_depend d
        JOIN pg_catalog.pg_attrdef f ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND f.oid = d.objid
       WHERE d.refclassid = 'pg_catalog.pg_class'::regclass
      UNION
      SELECT d.objid, d.refobjid FROM pg_catalog.pg_depend d
       WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
         AND d.deptype IN ('a', 'i')) used
    JOIN pg_catalog.pg_class s ON s.oid = used.seq AND s.relkind = 'S'
    JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace
    JOIN pg_catalog.pg_class t ON t.oid = used.tab
    JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
   ORDER BY 1, 2, 3, 4`;

/** Where there are several subsets, a sequence is of the one that uses it; what none uses is of the rest. */
async function readOwners(session: Session): Promise<ReadonlyMap<string, SubsetId>> {
  const members = new Map((await readBarrier(session)).map((each) => [quoteTable(each), each.subset]));
  const { rows } = await session.run(TIES_SQL);
  const owners = new Map<string, SubsetId>();
  for (const row of rows) {
    const sequence = quoteTable({ schema: row['schema'] ?? '', name: row['name'] ?? '' });
    const table = quoteTable({ schema: row['table_schema'] ?? '', name: row['table_name'] ?? '' });
    const subset = members.get(table);
    if (subset !== undefined && !owners.has(sequence)) owners.set(sequence, subset);
  }
  return owners;
}

/** Of the subsets' sequences; all there are, of the whole database. */
export async function readSequenceDefinitions(
  session: Session,
  ...subsets: readonly SubsetId[]
): Promise<readonly SequenceDefinition[]> {
  const all = await readAllDefinitions(session);
  if (subsets.length === 0 || subsets.includes(WHOLE_DATABASE)) return all;
  const owners = await readOwners(session);
  return all.filter((sequence) => subsets.includes(owners.get(keyOf(sequence)) ?? REST));
}

async function readAllDefinitions(session: Session): Promise<readonly SequenceDefinition[]> {
  const { rows } = await session.run(DEFINITIONS_SQL);
  return rows.map((row) => ({
    schema: row['schema'] ?? '',
    name: row['name'] ?? '',
    increment: BigInt(row['increment'] ?? '1'),
    minValue: BigInt(row['minimum'] ?? '0'),
    maxValue: BigInt(row['maximum'] ?? '0'),
    cache: BigInt(row['cache'] ?? '1'),
    cycle: row['cycle'] === 't',
  }));
}

/**
 * Reads how far every sequence has come: one round trip where the definitions are known, else two. Throws
 * `…-query-failed` where one of them is gone.
 */
export async function readSequences(
  session: Session,
  known?: readonly SequenceDefinition[],
): Promise<readonly SequenceState[]> {
  const definitions = known ?? (await readSequenceDefinitions(session));
  if (definitions.length === 0) return [];
  const selects = definitions.map(
    (sequence, index) => `SELECT ${index} AS index, last_value, is_called FROM ${quoteTable(sequence)}`,
  );
  const { rows } = await session.run(selects.join(' UNION ALL '));
  const states = new Map(rows.map((row) => [Number(row['index']), row]));
  return definitions.flatMap((sequence, index) => {
    const state = states.get(index);
    if (state === undefined) return [];
    return [
      { ...sequence, lastValue: BigInt(state['last_value'] ?? '0'), isCalled: state['is_called'] === 't' },
    ];
  });
}

export function sample(atMs: number, states: readonly SequenceState[]): SequenceSample {
  return { atMs, states: new Map(states.map((state) => [keyOf(state), state])) };
}

/** Values taken per second between the two moments, rounded up; 0 where it can't be told. */
export function observedRate(before: SequenceSample, now: SequenceState, atMs: number): bigint {
  const then = before.states.get(keyOf(now));
  const elapsedMs = BigInt(Math.max(1, Math.floor(atMs - before.atMs)));
  if (then === undefined) return 0n;
  const taken = (now.lastValue - then.lastValue) / now.increment;
  return taken <= 0n ? 0n : (taken * 1000n + elapsedMs - 1n) / elapsedMs;
}

/** The value that the next nextval gives. */
function upcoming(state: { lastValue: bigint; isCalled: boolean }, increment: bigint): bigint {
  return state.isCalled ? state.lastValue + increment : state.lastValue;
}

/**
 * The state the new side's sequence takes.
 * @param from the state on the side that led. @param to the state on the new side.
 * @param margin number of values to skip, at least.
 */
export function carrySequence(from: SequenceState, to: SequenceState, margin: bigint): SequencePlan {
  const { increment } = from;
  const { schema, name } = to;
  const exact = { schema, name, lastValue: from.lastValue, isCalled: from.isCalled };
  if (from.cycle) return { ...exact, note: 'cycles, so it is carried exactly' };
  const ahead = (a: bigint, b: bigint): boolean => (increment > 0n ? a > b : a < b);
  const further = ahead(upcoming(to, increment), upcoming(from, increment)) ? to : from;
  const base = { schema, name, lastValue: further.lastValue, isCalled: further.isCalled };
  // A sequence nobody has called has given out nothing that could come again.
  if (!further.isCalled) return base;
  const skip = margin > from.cache ? margin : from.cache;
  const moved = further.lastValue + skip * increment;
  // A format may have given the sides other bounds, and a sequence can't be set past its own.
  const bound = increment > 0n ? to.maxValue : to.minValue;
  if (ahead(further.lastValue, bound))
    return { ...base, lastValue: bound, note: 'has come past the other side’s bound, and is left at it' };
  // One more value must be left, else the margin alone would exhaust it.
  if (ahead(moved + increment, bound))
    return { ...base, note: 'is near its bound, so it is carried without a margin' };
  return { ...base, lastValue: moved };
}

/**
 * Plans for all of `from`. A sequence that goes with its column has the schema of its table, which a format may have
 * changed: one of its name that no other is the twin of is then its twin. Throws `catalog-changed` where the new side lacks one.
 */
export function carrySequences(
  from: readonly SequenceState[],
  to: readonly SequenceState[],
  marginOf: (sequence: SequenceState) => bigint,
): readonly SequencePlan[] {
  const there = new Map(to.map((state) => [keyOf(state), state]));
  const here = new Set(from.map((state) => keyOf(state)));
  const moved = (name: string): SequenceState | undefined => {
    const [twin, second] = to.filter((state) => state.name === name && !here.has(keyOf(state)));
    return second === undefined ? twin : undefined;
  };
  return from.map((state) => {
    const other = there.get(keyOf(state)) ?? moved(state.name);
    if (other === undefined) {
      throw new UnderstudyError('catalog-changed', `sequence ${keyOf(state)} exists on one side only`, {
        advice: 'Create it on the other side too, or rebuild the shadow.',
      });
    }
    return carrySequence(state, other, marginOf(state));
  });
}

/**
 * One statement that sets all, if `condition` holds. setval takes effect at once, whatever becomes of the transaction:
 * the caller must hold the lock that keeps a process overruled meanwhile from setting an old state.
 */
export function setSequencesSql(plans: readonly SequencePlan[], condition = 'true'): readonly string[] {
  if (plans.length === 0) return [];
  const rows = plans.map(
    (plan) => `(${quoteLiteral(keyOf(plan))}, ${plan.lastValue}::bigint, ${plan.isCalled})`,
  );
  return [
    `SELECT pg_catalog.count(pg_catalog.setval(v.name::regclass, v.value, v.called))
       FROM (VALUES ${rows.join(', ')}) AS v (name, value, called) WHERE ${condition}`,
  ];
}
