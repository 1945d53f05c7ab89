/**
 * Who may ask what of the admin port.
 *
 * - Everything under /api wants the bearer token where one is configured, compared in constant time.
 * - The Host header must name an address this port is reached by: a web page that rebinds its own name to 127.0.0.1
 *   sends its own name there. No CORS header is ever sent, and a request that a page of another origin made (it
 *   carries Origin) is refused.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { UnderstudyError } from '../core/errors.js';

export interface AccessRules {
  /** The address the port listens on, as configured. */
  readonly host: string;
  readonly token: string | undefined;
}

/** `localhost:6433` → `localhost`; `[::1]:6433` → `::1`. */
function hostOf(header: string): string {
  const bracketed = /^\[([^\]]*)\](?::\d+)?$/.exec(header);
  return (bracketed?.[1] ?? header.replace(/:\d+$/, '')).toLowerCase();
}

const LOOPBACK = new Set(['localhost', '127.0.0.1', '::1']);
const ANY_ADDRESS = new Set(['0.0.0.0', '::', '']);

/** Throws `request-invalid` for a Host or Origin that is not ours. */
export function checkHost(request: IncomingMessage, rules: AccessRules): void {
  const header = request.headers.host;
  const name = header === undefined ? '' : hostOf(header);
  // Addresses can't be rebound, so literal ones are as good as the configured name. A port on all addresses is
  // reached by names only the operator knows; there, a token is always required.
  const known =
    LOOPBACK.has(name) || name === rules.host.toLowerCase() || (ANY_ADDRESS.has(rules.host) && name !== '');
  if (!known) {
    throw new UnderstudyError('request-invalid', 'the Host header does not name this port', {
      advice: `Ask for ${rules.host} by the address in admin.host.`,
    });
  }
  if (request.headers.origin !== undefined)
    throw new UnderstudyError('request-invalid', 'requests made by web pages are refused');
}

const digest = (text: string): Buffer => createHash('sha256').update(text).digest();

/** Throws `admin-unauthorized`. */
export function checkToken(request: IncomingMessage, rules: AccessRules): void {
  if (rules.token === undefined) return;
  const given = /^Bearer (.+)$/i.exec(request.headers.authorization ?? '')?.[1] ?? '';
  // Digests are of one length, which timingSafeEqual wants, and hide the token's.
  if (!timingSafeEqual(digest(given), digest(rules.token))) {
    throw new UnderstudyError('admin-unauthorized', 'the token is missing or wrong', {
      advice: 'Set admin.token, UNDERSTUDY_ADMIN_TOKEN or --token to the running process’s token.',
    });
  }
}
