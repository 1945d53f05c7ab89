/**
 * What must hold of answers that tell which server gave them, and of transactions on tables of two subsets. Pure, and it
 * knows who led only from what was seen outside: between two operations on a subset its side is what took writes.
 */
import type { AuditFinding } from './audit.js';

type Side = 'source' | 'destination';

/** An answer about a subset's tables, between its call and its coming. */
export interface SideRead {
  readonly subset: string;
  readonly side: Side;
  readonly how: string;
  readonly calledMs: number;
  readonly answeredMs: number;
}

/** A transaction on tables of two subsets. */
export interface Crossing {
  readonly subsets: readonly [string, string];
  /** An SQLSTATE, or the network's code; null: it was served. */
  readonly code: string | null;
  readonly calledMs: number;
  readonly answeredMs: number;
}

/** That long a subset was led by that side, certainly, as no operation on it was under way. */
export interface Led {
  readonly subset: string;
  readonly side: Side;
  readonly fromMs: number;
  readonly toMs: number;
}

interface Span {
  readonly calledMs: number;
  readonly answeredMs: number;
}

function during(led: readonly Led[], subset: string, { calledMs, answeredMs }: Span): Side | null {
  const within = led.find(
    (each) => each.subset === subset && each.fromMs <= calledMs && answeredMs <= each.toMs,
  );
  return within?.side ?? null;
}

/** Each answer came from the side that led, where that is certain for all its time. */
export function auditSides(reads: readonly SideRead[], led: readonly Led[]): readonly AuditFinding[] {
  const wrong = reads.filter((read) => {
    const side = during(led, read.subset, read);
    return side !== null && side !== read.side;
  });
  return wrong.slice(0, 10).map(({ subset, side, how, calledMs }) => ({
    problem: 'wrong-side',
    detail: `${how}, on ${subset}, answered by the ${side} at ${calledMs.toFixed(1)} ms (${wrong.length} in all)`,
  }));
}

const FEATURE_NOT_SUPPORTED = '0A000';

/** Refused while the two are on different sides, and served, or failed for another reason, while they are not. */
export function auditCrossings(crossings: readonly Crossing[], led: readonly Led[]): readonly AuditFinding[] {
  return crossings.flatMap((crossing): AuditFinding[] => {
    const [one, other] = crossing.subsets.map((subset) => during(led, subset, crossing));
    if (one == null || other == null) return [];
    const detail = `${crossing.subsets.join(' and ')} at ${crossing.calledMs.toFixed(1)} ms`;
    if (one !== other && crossing.code === null) return [{ problem: 'crossing-served', detail }];
    if (one === other && crossing.code === FEATURE_NOT_SUPPORTED)
      return [{ problem: 'crossing-refused', detail }];
    return [];
  });
}
