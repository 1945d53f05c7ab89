/**
 * Whether what clients saw of one register could have come from a register: a search for an order of all operations
 * that each client's and the clock's order agree with. After Wing and Gong, "Testing and Verifying Concurrent Objects"
 * (1993), with the memo of Lowe, "Testing for linearizability" (2017).
 *
 * An operation without an answer may take effect at any time after its call, or never; such a read says nothing and is
 * left out, as is such a write whose value nobody has read.
 */

export interface RegisterOperation {
  readonly client: number;
  readonly kind: 'read' | 'write';
  /** Written, or read. */
  readonly value: number;
  readonly calledMs: number;
  /** null: no answer came. */
  readonly answeredMs: number | null;
}

export type Verdict =
  | { readonly linearizable: true }
  /** `stuckAt`: the operation whose answer no order can explain, however the ones before it are ordered. */
  | { readonly linearizable: false; readonly stuckAt: RegisterOperation };

interface Entry {
  readonly index: number;
  readonly operation: RegisterOperation;
  readonly isCall: boolean;
  /** Of a call: its answer; none where it has none. */
  answer: Entry | null;
  previous: Entry;
  next: Entry | null;
}

/** Operations of one register, in any order; `initial` is its value before all of them. */
export function checkRegister(operations: readonly RegisterOperation[], initial: number): Verdict {
  const read = new Set(operations.filter(({ kind }) => kind === 'read').map(({ value }) => value));
  const relevant = operations.filter(
    (operation) => operation.answeredMs !== null || (operation.kind === 'write' && read.has(operation.value)),
  );
  const head = linked(relevant);
  let unanswered = relevant.filter((operation) => operation.answeredMs !== null).length;
  const done = new Uint16Array(Math.ceil(relevant.length / 16) || 1);
  const seen = new Set<string>();
  const taken: { readonly entry: Entry; readonly before: number }[] = [];
  let value = initial;
  let at = head.next;
  let furthest: Entry | null = null;
  while (unanswered > 0) {
    if (at?.isCall === true) {
      const { operation } = at;
      const possible = operation.kind === 'write' || operation.value === value;
      if (possible) {
        const after = operation.kind === 'write' ? operation.value : value;
        flip(done, at.index);
        const key = `${after} ${String.fromCharCode(...done)}`;
        if (!seen.has(key)) {
          seen.add(key);
          taken.push({ entry: at, before: value });
          value = after;
          if (at.answer !== null) unanswered--;
          lift(at);
          at = head.next;
          continue;
        }
        flip(done, at.index);
      }
      at = at.next;
      continue;
    }
    // An answer came before anything else could explain it, or nothing is left to try: the last choice was wrong.
    if (at !== null && (furthest === null || at.operation.calledMs > furthest.operation.calledMs))
      furthest = at;
    const last = taken.pop();
    if (last === undefined) {
      const stuckAt = (furthest ?? head.next ?? head).operation;
      return { linearizable: false, stuckAt };
    }
    flip(done, last.entry.index);
    value = last.before;
    if (last.entry.answer !== null) unanswered++;
    unlift(last.entry);
    at = last.entry.next;
  }
  return { linearizable: true };
}

function flip(bits: Uint16Array, index: number): void {
  const at = index >> 4;
  bits[at] = (bits[at] ?? 0) ^ (1 << (index & 15));
}

/** Calls and answers in the order of time behind a head of no meaning; a call at the same time as an answer is before it. */
function linked(operations: readonly RegisterOperation[]): Entry {
  const nothing: RegisterOperation = { client: -1, kind: 'read', value: 0, calledMs: -1, answeredMs: null };
  const head = { index: -1, operation: nothing, isCall: true, answer: null, next: null } as unknown as Entry;
  head.previous = head;
  const entries: { atMs: number; entry: Entry }[] = [];
  for (const [index, operation] of operations.entries()) {
    const base = { index, operation, answer: null, previous: head, next: null };
    const call: Entry = { ...base, isCall: true };
    entries.push({ atMs: operation.calledMs, entry: call });
    if (operation.answeredMs === null) continue;
    call.answer = { ...base, isCall: false };
    entries.push({ atMs: operation.answeredMs, entry: call.answer });
  }
  entries.sort((a, b) => a.atMs - b.atMs || Number(b.entry.isCall) - Number(a.entry.isCall));
  let last = head;
  for (const { entry } of entries) {
    last.next = entry;
    entry.previous = last;
    last = entry;
  }
  return head;
}

function lift(entry: Entry): void {
  for (const each of [entry, entry.answer]) {
    if (each === null) continue;
    each.previous.next = each.next;
    if (each.next !== null) each.next.previous = each.previous;
  }
}

function unlift(entry: Entry): void {
  for (const each of [entry.answer, entry]) {
    if (each === null) continue;
    each.previous.next = each;
    if (each.next !== null) each.next.previous = each;
  }
}
