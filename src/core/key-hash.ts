/**
 * Keys of rows as Understudy remembers them: a keyed hash, so that nobody without the installation's secret can find
 * a value by trying values. Pure, and the same wherever a row's key is known: from a statement or from the row.
 */
import { createHmac } from 'node:crypto';

/**
 * The first 64 bits of HMAC-SHA-256 over table, columns and values, as 16 hexadecimal digits (RFC 2104, truncated as
 * in its section 5). `table` is `schema.name`; `values` are in {@link canonicalValue}'s form, in the key's order.
 */
export function keyHash(
  secret: Buffer,
  table: string,
  columns: readonly string[],
  values: readonly string[],
): string {
  return createHmac('sha256', secret)
    .update(JSON.stringify([table, columns, values]))
    .digest('hex')
    .slice(0, 16);
}

/**
 * One form for a value however it was sent: as text or, as bytes, in PostgreSQL's binary format. `type` is the base
 * type's name in pg_type. null: of a type, or in a form, whose equality can't be told from its text.
 */
export function canonicalValue(type: string, value: string | Uint8Array): string | null {
  switch (type) {
    case 'int2':
    case 'int4':
    case 'int8':
    case 'oid':
      return typeof value === 'string' ? canonicalInteger(value) : binaryInteger(value);
    case 'uuid':
      return canonicalUuid(typeof value === 'string' ? value : Buffer.from(value).toString('hex'));
    case 'text':
    case 'varchar':
    case 'name':
    case 'date':
      return typeof value === 'string' ? value : type === 'date' ? null : Buffer.from(value).toString('utf8');
    case 'bpchar':
      return (typeof value === 'string' ? value : Buffer.from(value).toString('utf8')).replace(/ +$/, '');
    case 'numeric':
      return typeof value === 'string' ? canonicalNumeric(value) : null;
    default:
      return null;
  }
}

function canonicalInteger(text: string): string | null {
  if (/^(?:0|-?[1-9]\d{0,18})$/.test(text)) return text;
  return /^\s*[-+]?\d{1,19}\s*$/.test(text) ? BigInt(text.replace('+', '')).toString() : null;
}

function binaryInteger(bytes: Uint8Array): string | null {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  switch (bytes.length) {
    case 2:
      return String(buffer.readInt16BE());
    case 4:
      return String(buffer.readInt32BE());
    case 8:
      return buffer.readBigInt64BE().toString();
    default:
      return null;
  }
}

function canonicalUuid(text: string): string | null {
  const digits = text.replace(/[-{}]/g, '').toLowerCase();
  return /^[0-9a-f]{32}$/.test(digits) ? digits : null;
}

/** Without a plus, leading zeros, and zeros after the point. */
function canonicalNumeric(text: string): string | null {
  const found = /^\s*([-+]?)0*(\d+)?(?:\.(\d*?)0*)?\s*$/.exec(text);
  if (found === null || !/\d/.test(text)) return null;
  const whole = found[2] ?? '0';
  const fraction = found[3] ?? '';
  const digits = fraction === '' ? whole : `${whole}.${fraction}`;
  return found[1] === '-' && digits !== '0' ? `-${digits}` : digits;
}
