/**
 * PostgreSQL's MD5 passwords: stored as `md5` + md5(password ‖ user), proven as `md5` + md5(hex ‖ salt).
 * https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
 */
import { createHash } from 'node:crypto';
import { encodeText } from './messages.js';
import { sameSecret } from './scram.js';

const STORED_PATTERN = /^md5[0-9a-f]{32}$/;

export function isMd5Secret(text: string): boolean {
  return STORED_PATTERN.test(text);
}

/** The stored form. PostgreSQL hashes the password's bytes as they are, without SASLprep. */
export function md5Secret(user: string, password: string | Buffer): string {
  return `md5${createHash('md5').update(password).update(encodeText(user)).digest('hex')}`;
}

/** What a client answers to AuthenticationMD5Password. `stored` is {@link md5Secret}'s form, `salt` 4 bytes. */
export function md5Response(stored: string, salt: Buffer): string {
  return `md5${createHash('md5').update(stored.slice(3), 'latin1').update(salt).digest('hex')}`;
}

/** Whether `response` proves knowledge of `stored`, in time that does not depend on where they differ. */
export function checkMd5Response(stored: string, salt: Buffer, response: Buffer): boolean {
  return sameSecret(Buffer.from(md5Response(stored, salt)), response);
}
