/**
 * The OIDs in messages, rewritten in place: an OID always takes four bytes, so no length changes.
 *
 * Each function takes a payload in `bytes[start, end)` and leaves alone what it does not know: an OID without an entry,
 * and whatever a malformed message claims to hold behind its end, which is its reader's to refuse.
 * https://www.postgresql.org/docs/current/protocol-message-formats.html
 */

/** OIDs of one server, each with the one that stands for it on the other; without those that are the same. */
export type OidMap = ReadonlyMap<number, number>;

/** Parse: name, text, count, a type for each parameter. */
export function rewriteParse(bytes: Buffer, start: number, end: number, types: OidMap): void {
  const text = afterZero(bytes, start, end);
  rewriteList(bytes, afterZero(bytes, text, end), end, types);
}

/** FunctionCall: the function comes first. */
export function rewriteFunctionCall(bytes: Buffer, start: number, end: number, functions: OidMap): void {
  rewriteAt(bytes, start, end, functions);
}

/** ParameterDescription: count, a type for each parameter. */
export function rewriteParameterDescription(bytes: Buffer, start: number, end: number, types: OidMap): void {
  rewriteList(bytes, start, end, types);
}

/** RowDescription: for each column its name, relation, attribute number, type, length, modifier and format. */
export function rewriteRowDescription(
  bytes: Buffer,
  start: number,
  end: number,
  types: OidMap,
  relations: OidMap,
): void {
  if (start + 2 > end) return;
  const columns = bytes.readUInt16BE(start);
  for (let column = 0, at = start + 2; column < columns && at < end; column++) {
    const fields = afterZero(bytes, at, end);
    rewriteAt(bytes, fields, end, relations);
    rewriteAt(bytes, fields + RELATION_AND_ATTRIBUTE_BYTES, end, types);
    at = fields + COLUMN_FIELDS_BYTES;
  }
}

const RELATION_AND_ATTRIBUTE_BYTES = 6;
const COLUMN_FIELDS_BYTES = 18;

function rewriteList(bytes: Buffer, start: number, end: number, map: OidMap): void {
  if (start + 2 > end) return;
  const count = bytes.readUInt16BE(start);
  for (let index = 0; index < count; index++) {
    if (!rewriteAt(bytes, start + 2 + 4 * index, end, map)) return;
  }
}

/** Returns false where the field is not within the payload. */
function rewriteAt(bytes: Buffer, at: number, end: number, map: OidMap): boolean {
  if (at + 4 > end) return false;
  const known = map.get(bytes.readUInt32BE(at));
  if (known !== undefined) bytes.writeUInt32BE(known, at);
  return true;
}

function afterZero(bytes: Buffer, from: number, end: number): number {
  const zero = bytes.indexOf(0, from);
  return zero === -1 || zero >= end ? end : zero + 1;
}
