/** Which of two rows stands, where the destination was written to by somebody while the source led. */
import { pathToFileURL } from 'node:url';
import { UnderstudyError } from '../../core/errors.js';

export const CONFLICT_RULES = ['source-wins', 'destination-wins', 'last-write-wins', 'module'] as const;
export type ConflictRule = (typeof CONFLICT_RULES)[number];

export interface ConflictSettings {
  readonly rule: ConflictRule;
  /** A JavaScript module whose `settle` (or default) export decides, by the rule `module`. */
  readonly module?: string | undefined;
}

export const CONFLICT_DEFAULTS: ConflictSettings = { rule: 'source-wins' };

/** A row as JSON, as PostgreSQL's to_jsonb makes it; null where there is none. */
export type RowValue = Readonly<Record<string, unknown>> | null;
export type Winner = 'source' | 'destination';

/** What a rule is given. */
export interface Conflict {
  /** As `schema.name`, as the destination has it. */
  readonly table: string;
  /** Values of the key as text, in its columns' order. */
  readonly key: readonly string[];
  readonly source: RowValue;
  readonly destination: RowValue;
  /** When each row was written; null where that is not known. Milliseconds since 1970. */
  readonly sourceWrittenMs: number | null;
  readonly destinationWrittenMs: number | null;
}

export interface Verdict {
  readonly winner: Winner;
  readonly reason: string;
}

/** What a user's module exports. */
export type SettleFunction = (conflict: Conflict) => Winner | Promise<Winner>;

const DECIDES_WITHIN_MS = 5000;

/** Throws `conflict-undecided` where a module throws, takes too long, or answers anything else. */
export async function decide(
  rule: ConflictRule,
  conflict: Conflict,
  settle: SettleFunction | null,
): Promise<Verdict> {
  switch (rule) {
    case 'source-wins':
      return { winner: 'source', reason: 'by rule' };
    case 'destination-wins':
      return { winner: 'destination', reason: 'by rule' };
    case 'last-write-wins':
      return lastWrite(conflict);
    case 'module':
      return { winner: await byModule(conflict, settle), reason: 'by the module' };
  }
}

function lastWrite({ sourceWrittenMs, destinationWrittenMs }: Conflict): Verdict {
  if (sourceWrittenMs === null || destinationWrittenMs === null) {
    const side = sourceWrittenMs === null ? 'source' : 'destination';
    return { winner: 'source', reason: `it is not known when the ${side}’s row was written` };
  }
  return destinationWrittenMs > sourceWrittenMs
    ? { winner: 'destination', reason: 'written later' }
    : { winner: 'source', reason: 'written later' };
}

async function byModule(conflict: Conflict, settle: SettleFunction | null): Promise<Winner> {
  if (settle === null) throw undecided('there is no module');
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<null>((resolve) => {
    timer = setTimeout(() => resolve(null), DECIDES_WITHIN_MS);
  });
  let answer: unknown;
  try {
    answer = await Promise.race([settle(conflict), late]);
  } catch (error) {
    // Its message may hold values of the rows.
    throw undecided(`it threw ${error instanceof Error ? error.name : 'something'}`);
  } finally {
    clearTimeout(timer);
  }
  if (answer === 'source' || answer === 'destination') return answer;
  throw undecided(
    answer === null
      ? `no answer within ${DECIDES_WITHIN_MS} ms`
      : 'it answered neither source nor destination',
  );
}

function undecided(why: string): UnderstudyError {
  return new UnderstudyError('conflict-undecided', `the conflict module decided nothing: ${why}`, {
    advice: 'Mend the module, then restart Understudy: the conflict stays recorded until it is settled.',
  });
}

/** Throws `config-invalid` where the module can't be loaded, or exports no function. */
export async function loadSettle({ rule, module }: ConflictSettings): Promise<SettleFunction | null> {
  if (rule !== 'module') return null;
  if (module === undefined) {
    throw new UnderstudyError('config-invalid', 'shadow.conflicts.rule is module, and no module is named', {
      advice: 'Set shadow.conflicts.module to the path of a JavaScript module.',
    });
  }
  let loaded: Readonly<Record<string, unknown>>;
  try {
    loaded = (await import(pathToFileURL(module).href)) as Readonly<Record<string, unknown>>;
  } catch (error) {
    throw new UnderstudyError('config-invalid', `the conflict module ${module} can’t be loaded`, {
      cause: error,
      advice: 'Check the path in shadow.conflicts.module.',
    });
  }
  const settle = loaded['settle'] ?? loaded['default'];
  if (typeof settle === 'function') return settle as SettleFunction;
  throw new UnderstudyError('config-invalid', `the conflict module ${module} exports no function settle`, {
    advice: 'Export `settle(conflict)`, which answers `source` or `destination`.',
  });
}
