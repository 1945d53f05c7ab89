/** What a run does, drawn from its seed: the same seed, the same plan. Pure. */
import { Chance } from '../../test/support/mutate.js';
import type { StepPoint } from '../../src/cutover/settings.js';
import { ARRANGEMENTS, type SubsetCount } from './arrangement.js';

export const LINKS = ['client', 'source', 'destination'] as const;
export type Link = (typeof LINKS)[number];

/** What Toxiproxy does to a link. */
export const LINK_FAULTS = [
  'lost',
  'slow',
  'narrow',
  'stalled',
  'one-way',
  'half-closed',
  'reset',
  'sliced',
] as const;
export type LinkFault = (typeof LINK_FAULTS)[number];

export const OTHER_FAULTS = [
  'none',
  'kill-understudy',
  'kill-source',
  'kill-destination',
  'disk-full',
  'clock-jump',
  'long-transaction',
  'direct-lock',
  'ddl',
  'connections-full-source',
  'connections-full-destination',
] as const;
export type OtherFault = (typeof OTHER_FAULTS)[number];

/** Of plans from {@link NEWER_FROM_SEED} on alone: what a seed below has drawn it draws still. */
export const NEWER_FAULTS = [
  'ddl-late',
  'restart-without-source',
  'restart-without-destination',
  'kill-worker',
] as const;
export type NewerFault = (typeof NEWER_FAULTS)[number];
export const NEWER_FROM_SEED = 70_000;

export type FaultName = OtherFault | NewerFault | `${Link}-${LinkFault}`;

const OLDER_FAULTS: readonly FaultName[] = [
  ...OTHER_FAULTS,
  ...LINKS.flatMap((link) => LINK_FAULTS.map((fault) => `${link}-${fault}` as const)),
];
export const FAULTS: readonly FaultName[] = [...OLDER_FAULTS, ...NEWER_FAULTS];

/** Those that come up more often than others: the harder ones. */
const WEIGHTS: Readonly<Partial<Record<FaultName, number>>> = {
  'kill-understudy': 6,
  'kill-source': 3,
  'kill-destination': 4,
  'disk-full': 2,
  'direct-lock': 2,
  'destination-stalled': 2,
  'destination-reset': 2,
  'destination-one-way': 2,
  'destination-half-closed': 2,
};

const BEFORE_COMMIT: readonly StepPoint[] = [
  'before:preflight',
  'before:prepare',
  'after:prepare',
  'before:hold',
  'after:hold',
  'before:fence',
  'after:fence',
  'before:catch-up',
  'after:catch-up',
  'before:verify',
  'after:verify',
  'before:commit',
  'before:send-commit',
];
const AFTER_COMMIT: readonly StepPoint[] = [
  'after:send-commit',
  'before:open',
  'after:open',
  'before:switch',
  'after:switch',
  'before:release',
  'after:release',
  'before:finish',
  'after:finish',
];
const UNDOING: readonly StepPoint[] = [
  'before:journal-abort',
  'after:journal-abort',
  'before:undo-fence',
  'after:undo-fence',
  'before:undo-hold',
  'after:undo-hold',
];
export const POINTS: readonly StepPoint[] = [...BEFORE_COMMIT, ...AFTER_COMMIT, ...UNDOING];
/** From when the barriers are up until the commit is on its way: the last that may be noticed. */
const LATE: readonly StepPoint[] = [
  'after:fence',
  'before:catch-up',
  'after:catch-up',
  'before:verify',
  'after:verify',
  'before:commit',
  'before:send-commit',
];

export interface Fault {
  readonly name: FaultName;
  readonly point: StepPoint;
  /** 0: the operation waits at the point until the fault is there. Else it goes on, and the fault comes so much later. */
  readonly delayMs: number;
  /** For what has variants: the signal, the jump, the statement. */
  readonly variant: number;
}

/** One cutover or rollback, whichever the route asks for, and what befalls it. */
export interface Act {
  readonly faults: readonly Fault[];
  /** The operation is told to abort before its commit, so that the points of undoing are reached. */
  readonly abort: boolean;
  /** The faults end when the operation has, and after that time at the latest. */
  readonly lastsMs: number;
  /** What was killed starts again so much later. */
  readonly restartAfterMs: number;
  /** Understudy before the servers. */
  readonly understudyFirst: boolean;
  /** Which of the arrangement's subsets. */
  readonly subset: number;
}

export interface Plan {
  readonly seed: number;
  readonly poolMode: 'session' | 'transaction' | 'pipelined';
  readonly capture: boolean;
  readonly acts: readonly Act[];
  /**
   * Who leads when the acts begin: for the destination there is a cutover without a fault first; of one subset where there
   * are several.
   */
  readonly leads: 'source' | 'destination';
  readonly subsets: SubsetCount;
  /** Processes of the proxy. */
  readonly workers: 1 | 2;
}

export interface PlanOptions {
  /** Faults whose name begins so. */
  readonly only?: string;
  /** Faults that can't be made here. */
  readonly without?: ReadonlySet<FaultName>;
  /** As many, whatever the seed says. */
  readonly subsets?: SubsetCount;
}

/** Throws where no fault is left. */
export function drawPlan(
  seed: number,
  { only, without = new Set(), subsets: askedSubsets }: PlanOptions = {},
): Plan {
  const chance = new Chance(Math.imul(seed + 1, 0x9e3779b1));
  for (let warm = 0; warm < 8; warm++) chance.below(2);
  const asked = (name: FaultName): boolean =>
    !without.has(name) && (only === undefined || name.startsWith(only));
  const older = OLDER_FAULTS.filter(asked).flatMap((name) => Array<FaultName>(WEIGHTS[name] ?? 1).fill(name));
  const newer = NEWER_FAULTS.filter(asked);
  if (older.length + newer.length === 0) throw new Error(`no fault ${only ?? ''} can be made here`);
  const faults: readonly FaultName[] = older.length === 0 ? ['none'] : older;
  const whole: Plan = {
    seed,
    poolMode: chance.pick(['session', 'session', 'session', 'session', 'transaction', 'pipelined']),
    capture: chance.once(6),
    acts: Array.from({ length: 1 + chance.below(2) }, () => drawAct(chance, faults)),
    leads: chance.pick(['source', 'destination']),
    subsets: 0,
    workers: 1,
  };
  // Drawn last, so that the same seed without subsets is the same plan.
  const drawn = chance.pick<SubsetCount>([0, 0, 2, 3]);
  const undivided = older.length === 0 && newer.every((name) => UNDIVIDED.has(name));
  const subsets = askedSubsets ?? (undivided ? 0 : drawn);
  if (undivided && subsets > 0) throw new Error(`${only ?? ''} is for --subsets 0`);
  const often = older.length === 0 ? 1 : seed < NEWER_FROM_SEED ? 0 : NEWER_OFTEN;
  if (subsets === 0) return withNewer(whole, newer, often);
  const more = Array.from({ length: 1 + chance.below(3) }, () => drawAct(chance, faults));
  const acts = [...whole.acts, ...more].map((act) => ({ ...act, subset: chance.below(subsets) }));
  return withNewer({ ...whole, poolMode: 'session', acts, subsets }, newer, often);
}

/** Subsets and several processes of the proxy do not go together. */
const UNDIVIDED: ReadonlySet<FaultName> = new Set(['kill-worker']);
/** In that share of the acts. */
const NEWER_OFTEN = 1 / 3;

/** Some of the plan's faults give way to newer ones. Drawn apart from all else. */
function withNewer(plan: Plan, newer: readonly NewerFault[], often: number): Plan {
  const chance = new Chance(Math.imul(plan.seed + 1, 0x85ebca6b));
  for (let warm = 0; warm < 8; warm++) chance.below(2);
  const fitting = newer.filter((name) => plan.subsets === 0 || !UNDIVIDED.has(name));
  if (fitting.length === 0) return plan;
  const acts = plan.acts.map((act): Act => {
    if (chance.below(1000) >= often * 1000) return act;
    const name = chance.pick(fitting);
    const drawn = drawFault(chance, name);
    const fault = name === 'ddl-late' ? { ...drawn, point: chance.pick(LATE) } : drawn;
    return {
      ...act,
      faults: [fault, ...act.faults.slice(1)],
      abort: act.abort || UNDOING.includes(fault.point),
    };
  });
  const kills = acts.some(({ faults }) => faults.some(({ name }) => name === 'kill-worker'));
  return { ...plan, acts, workers: kills ? 2 : 1 };
}

function drawAct(chance: Chance, faults: readonly FaultName[]): Act {
  const count = chance.once(5) ? 2 : 1;
  const drawn = Array.from({ length: count }, () => drawFault(chance, chance.pick(faults)));
  return {
    faults: drawn,
    abort: drawn.some((fault) => UNDOING.includes(fault.point)),
    lastsMs: chance.pick([150, 400, 900, 1800]),
    restartAfterMs: chance.pick([0, 50, 300]),
    understudyFirst: chance.once(2),
    subset: 0,
  };
}

function drawFault(chance: Chance, name: FaultName): Fault {
  const points = chance.pick([BEFORE_COMMIT, BEFORE_COMMIT, AFTER_COMMIT, UNDOING]);
  return {
    name,
    point: chance.pick(points),
    delayMs: chance.once(2) ? 0 : 1 + chance.below(12),
    variant: chance.below(1000),
  };
}

/** One line for people: what is done where. */
export function describePlan(plan: Plan): string {
  const { subsets } = ARRANGEMENTS[plan.subsets];
  const acts = plan.acts.map(({ faults, abort, subset }) => {
    const made = faults
      .map(({ name, point, delayMs }) => `${name}@${point}${delayMs === 0 ? '' : `+${delayMs}ms`}`)
      .concat(abort ? ['abort'] : [])
      .join(' & ');
    return plan.subsets === 0 ? made : `${subsets[subset]}: ${made}`;
  });
  const settings = [
    plan.poolMode,
    ...(plan.capture ? ['capture'] : []),
    ...(plan.workers === 1 ? [] : [`${plan.workers} workers`]),
    ...(plan.leads === 'destination' ? ['after a cutover'] : []),
    ...(plan.subsets === 0 ? [] : [`${plan.subsets} subsets`]),
  ];
  return `${acts.join(', then ')} (${settings.join(', ')})`;
}
