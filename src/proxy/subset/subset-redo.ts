/** What a transaction did before it touched a table, as messages that do it again on another connection. */
import { FRONTEND, encodeSync } from '../../wire/postgres/messages.js';
import type { OwnKind } from '../session/response-tracker.js';

export interface Redone {
  readonly messages: Buffer;
  readonly kind: OwnKind;
}

/**
 * Of one segment, whole, whose bytes are copied. Named statements are carried over by themselves, so they are not prepared
 * again; what only asks for descriptions is left out. Null where it runs an unnamed statement that came before it.
 */
export function redone(segment: Buffer, simple: boolean): Redone | null {
  if (simple) return { messages: Buffer.from(segment), kind: 'own-query' };
  const kept: Buffer[] = [];
  let parsed = false;
  for (let at = 0; at + 5 <= segment.length;) {
    const end = at + segment.readInt32BE(at + 1) + 1;
    const type = segment[at];
    const unnamed = segment[at + 5] === 0;
    if (type === FRONTEND.parse && unnamed) parsed = true;
    const statementAt = segment.indexOf(0, at + 5) + 1;
    if (type === FRONTEND.bind && segment[statementAt] === 0 && !parsed) return null;
    if (type === FRONTEND.bind || type === FRONTEND.execute || (type === FRONTEND.parse && unnamed)) {
      kept.push(segment.subarray(at, end));
    }
    at = end;
  }
  return { messages: Buffer.concat([...kept, encodeSync()]), kind: 'own-sync' };
}
