/**
 * SCRAM-SHA-256, both roles, with and without channel binding, as RFC 5802 and RFC 7677 define it and PostgreSQL
 * applies it.
 *
 *   SaltedPassword  = PBKDF2(password, salt, iterations)
 *   ClientKey       = HMAC(SaltedPassword, "Client Key")      StoredKey = SHA-256(ClientKey)
 *   ServerKey       = HMAC(SaltedPassword, "Server Key")
 *   AuthMessage     = client-first-bare , server-first , client-final-without-proof
 *   ClientProof     = ClientKey XOR HMAC(StoredKey, AuthMessage)
 *   ServerSignature = HMAC(ServerKey, AuthMessage)
 *
 * A server stores salt, iterations, StoredKey and ServerKey: the *verifier*. From a proof and the StoredKey it learns
 * the ClientKey, which opens every other server with the same verifier. That is how the proxy opens a second server
 * without knowing the password.
 *
 * Exchanges are pure: nonces are given by the caller. The parts must be called in order; a malformed message throws
 * `protocol-violation`, a wrong proof is an ordinary result.
 */
import { isUtf8 } from 'node:buffer';
import { createHash, createHmac, pbkdf2, timingSafeEqual } from 'node:crypto';
import { promisify } from 'node:util';
import { UnderstudyError } from '../../core/errors.js';

export const SCRAM_MECHANISM = 'SCRAM-SHA-256';
/** Binds the exchange to the TLS connection it runs on. */
export const SCRAM_PLUS_MECHANISM = 'SCRAM-SHA-256-PLUS';
const BINDING_TYPE = 'tls-server-end-point';
/** What PostgreSQL uses unless `scram_iterations` says otherwise. */
export const SCRAM_ITERATIONS_DEFAULT = 4096;
/** A server could ask for hours of our processor time; one second's worth is a bound nobody reasonable meets. */
const ITERATIONS_MAX = 1_000_000;
const KEY_BYTES = 32;

export interface ScramVerifier {
  readonly iterations: number;
  readonly salt: Buffer;
  readonly storedKey: Buffer;
  readonly serverKey: Buffer;
}

/** What a client needs to prove itself and to check the server. */
export interface ScramKeys {
  readonly clientKey: Buffer;
  readonly storedKey: Buffer;
  readonly serverKey: Buffer;
}

/** Equality in time that depends on the lengths alone. */
export function sameSecret(a: Buffer, b: Buffer): boolean {
  return a.length === b.length && timingSafeEqual(a, b);
}

// ---------------------------------------------------------------------------------------------------------------
// Verifiers and keys

const VERIFIER_PATTERN = /^SCRAM-SHA-256\$(\d{1,10}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)$/;

/** Reads the form of `pg_authid.rolpassword`; null for anything else. */
export function parseScramVerifier(text: string): ScramVerifier | null {
  const [, iterationsText = '', saltText = '', storedText = '', serverText = ''] =
    VERIFIER_PATTERN.exec(text) ?? [];
  const iterations = Number(iterationsText);
  const salt = decodeBase64(saltText);
  const storedKey = decodeBase64(storedText);
  const serverKey = decodeBase64(serverText);
  if (iterations < 1 || salt === null || storedKey?.length !== KEY_BYTES || serverKey?.length !== KEY_BYTES) {
    return null;
  }
  return { iterations, salt, storedKey, serverKey };
}

export function formatScramVerifier(verifier: ScramVerifier): string {
  const [salt, stored, server] = [verifier.salt, verifier.storedKey, verifier.serverKey].map((bytes) =>
    bytes.toString('base64'),
  );
  return `${SCRAM_MECHANISM}$${verifier.iterations}:${salt}$${stored}:${server}`;
}

/**
 * Runs PBKDF2 on the thread pool (about 2 ms at 4096 iterations). `password` is normalised here; bytes that are not
 * UTF-8 are taken as they are, as PostgreSQL does.
 */
export async function deriveScramKeys(
  password: string | Buffer,
  salt: Buffer,
  iterations: number,
): Promise<ScramKeys> {
  const prepared =
    typeof password === 'string' || isUtf8(password) ? saslPrep(password.toString('utf8')) : password;
  const salted = await promisify(pbkdf2)(prepared, salt, iterations, KEY_BYTES, 'sha256');
  const clientKey = hmac(salted, 'Client Key');
  return { clientKey, storedKey: sha256(clientKey), serverKey: hmac(salted, 'Server Key') };
}

/** RFC 3454 table C.1.2, mapped to a space, and B.1, mapped to nothing. */
const OTHER_SPACES = /[\u00A0\u1680\u2000-\u200B\u202F\u205F\u3000]/gu;
// eslint-disable-next-line no-misleading-character-class -- joiners and selectors are what the table lists
const MAPPED_TO_NOTHING =
  /\u00AD|\u034F|\u1806|[\u180B-\u180D]|\u200C|\u200D|\u2060|[\uFE00-\uFE0F]|\uFEFF/gu;
/** RFC 3454 tables C.2 to C.9: control, private use, surrogates, non-characters, tags. */
const PROHIBITED =
  /[\p{Cc}\p{Co}\p{Cs}\u06DD\u070F\u180E\u2028\u2029\u2061-\u2063\u206A-\u206F\uFFF9-\uFFFD\u2FF0-\u2FFB\u200E\u200F\u202A-\u202E\u{1D173}-\u{1D17A}\u{E0001}\u{E0020}-\u{E007F}]|\u0340|\u0341|\p{Noncharacter_Code_Point}/u;

/**
 * SASLprep (RFC 4013) as PostgreSQL uses it: plain ASCII is left alone, and a password that the profile prohibits is
 * used as it is. Two steps are left out: code points unassigned in Unicode 3.2 are normalised by the newer Unicode of
 * the JavaScript engine, and the bidirectional rule (which would make PostgreSQL use the raw password) is not
 * applied. Both matter only for secrets kept as plain text or sent as cleartext, and only in right-to-left scripts or
 * characters newer than 2002.
 */
export function saslPrep(password: string): string {
  if (isAscii(password)) return password;
  const prepared = password.replaceAll(OTHER_SPACES, ' ').replaceAll(MAPPED_TO_NOTHING, '').normalize('NFKC');
  return prepared === '' || PROHIBITED.test(prepared) ? password : prepared;
}

function isAscii(text: string): boolean {
  for (let index = 0; index < text.length; index++) if (text.charCodeAt(index) > 0x7f) return false;
  return true;
}

/** Whether `password` is the one behind `verifier`. */
export async function checkScramPassword(
  verifier: ScramVerifier,
  password: string | Buffer,
): Promise<boolean> {
  if (verifier.iterations > ITERATIONS_MAX) return false;
  const { storedKey } = await deriveScramKeys(password, verifier.salt, verifier.iterations);
  return sameSecret(storedKey, verifier.storedKey);
}

// ---------------------------------------------------------------------------------------------------------------
// The server's role

/** What the server's side knows of channel binding. */
export interface ServerBinding {
  /** The mechanism that the client chose. */
  readonly bound: boolean;
  /** What there is to bind to, see `endpointBinding`; null where -PLUS was not offered. */
  readonly endpoint: Buffer | null;
}

/** The server's side of one exchange: `challenge`, then `finish`. */
export class ScramServerExchange {
  readonly #verifier: ScramVerifier;
  readonly #serverNonce: string;
  readonly #binding: ServerBinding;
  #gs2Header = '';
  #nonce = '';
  #clientFirstBare = '';
  #serverFirst = '';

  /** `serverNonce`: at least 18 random bytes as base64. */
  constructor(
    verifier: ScramVerifier,
    serverNonce: string,
    binding: ServerBinding = { bound: false, endpoint: null },
  ) {
    this.#verifier = verifier;
    this.#serverNonce = serverNonce;
    this.#binding = binding;
  }

  /** Takes client-first-message, gives server-first-message. */
  challenge(clientFirst: string): string {
    const match = /^([^,]*),([^,]*),(.*)$/s.exec(clientFirst);
    if (match === null) throw malformed('client-first-message has no GS2 header');
    const [, binding = '', identity = '', bare = ''] = match;
    this.#checkFlag(binding);
    if (identity !== '') {
      throw malformed('client uses authorization identity, but it is not supported', '0A000');
    }
    if (bare.startsWith('m=')) throw malformed('client requires an unsupported SCRAM extension', '0A000');
    const [userName = '', nonceAttribute = ''] = bare.split(',');
    // The name is ignored, as PostgreSQL does: the startup message already gave it, and drivers send `n=*` or none.
    if (!userName.startsWith('n=')) throw malformed('client-first-message has no user name attribute');
    const clientNonce = readAttribute(nonceAttribute, 'r');
    if (!isNonce(clientNonce)) throw malformed('non-printable characters in SCRAM nonce');
    this.#gs2Header = `${binding},,`;
    this.#clientFirstBare = bare;
    this.#nonce = clientNonce + this.#serverNonce;
    const salt = this.#verifier.salt.toString('base64');
    this.#serverFirst = `r=${this.#nonce},s=${salt},i=${this.#verifier.iterations}`;
    return this.#serverFirst;
  }

  /** The GS2 flag: n, the client can't bind; y, it can and believes that the server can't; p=…, it binds. */
  #checkFlag(flag: string): void {
    const { bound, endpoint } = this.#binding;
    if (flag.startsWith('p=')) {
      if (!bound) {
        throw malformed('the client selected SCRAM-SHA-256 without channel binding, but binds a channel');
      }
      if (flag !== `p=${BINDING_TYPE}`) throw malformed('unsupported SCRAM channel-binding type');
      return;
    }
    if (flag !== 'n' && flag !== 'y') throw malformed('unexpected channel-binding flag');
    if (bound) throw malformed('the client selected SCRAM-SHA-256-PLUS, but binds no channel');
    if (flag === 'y' && endpoint !== null) {
      // Somebody in the middle has taken -PLUS out of the offer.
      throw violation(
        'SCRAM channel binding negotiation error: the client believes that this server does not support it',
        '28000',
      );
    }
  }

  /** Takes client-final-message, gives the client's key and server-final-message; null where the proof is wrong. */
  finish(clientFinal: string): { readonly clientKey: Buffer; readonly serverFinal: string } | null {
    const proofAt = clientFinal.lastIndexOf(',p=');
    if (proofAt === -1) throw malformed('client-final-message has no proof');
    const withoutProof = clientFinal.slice(0, proofAt);
    const [bindingAttribute = '', nonceAttribute = ''] = withoutProof.split(',');
    const { bound, endpoint } = this.#binding;
    const input = Buffer.concat([
      Buffer.from(this.#gs2Header),
      ...(bound && endpoint !== null ? [endpoint] : []),
    ]);
    if (readAttribute(bindingAttribute, 'c') !== input.toString('base64')) {
      if (bound) throw violation('SCRAM channel binding check failed', '28000');
      throw malformed('unexpected channel-binding attribute in client-final-message');
    }
    if (readAttribute(nonceAttribute, 'r') !== this.#nonce) throw malformed('nonce does not match');
    const proof = decodeBase64(clientFinal.slice(proofAt + 3));
    if (proof?.length !== KEY_BYTES) throw malformed('malformed proof in client-final-message');
    const authMessage = `${this.#clientFirstBare},${this.#serverFirst},${withoutProof}`;
    const clientKey = xor(proof, hmac(this.#verifier.storedKey, authMessage));
    if (!sameSecret(sha256(clientKey), this.#verifier.storedKey)) return null;
    const signature = hmac(this.#verifier.serverKey, authMessage).toString('base64');
    return { clientKey, serverFinal: `v=${signature}` };
  }
}

// ---------------------------------------------------------------------------------------------------------------
// The client's role

/**
 * What the client's side knows of channel binding: it can't (n); it could, and the server does not offer it (y); or
 * what it binds to, see `endpointBinding`.
 */
export type ClientBinding = 'n' | 'y' | Buffer;

/** The client's side of one exchange: `first`, `readChallenge`, `prove`, `accepts`. */
export class ScramClientExchange {
  readonly #clientNonce: string;
  readonly #binding: ClientBinding;
  readonly #userName: string;
  #serverFirst = '';
  #nonce = '';
  #expectedSignature: Buffer | undefined;

  /** `clientNonce`: at least 18 random bytes as base64. PostgreSQL ignores `userName`; libpq leaves it empty too. */
  constructor(clientNonce: string, binding: ClientBinding = 'n', userName = '') {
    this.#clientNonce = clientNonce;
    this.#binding = binding;
    this.#userName = userName;
  }

  get mechanism(): string {
    return typeof this.#binding === 'string' ? SCRAM_MECHANISM : SCRAM_PLUS_MECHANISM;
  }

  get #firstBare(): string {
    return `n=${this.#userName},r=${this.#clientNonce}`;
  }

  get #gs2Header(): string {
    return typeof this.#binding === 'string' ? `${this.#binding},,` : `p=${BINDING_TYPE},,`;
  }

  /** client-first-message. */
  first(): string {
    return `${this.#gs2Header}${this.#firstBare}`;
  }

  /** Takes server-first-message; says which salt and iterations the keys must have been made with. */
  readChallenge(serverFirst: string): { readonly salt: Buffer; readonly iterations: number } {
    const [nonceAttribute = '', saltAttribute = '', iterationsAttribute = ''] = serverFirst.split(',');
    const nonce = readAttribute(nonceAttribute, 'r');
    if (!nonce.startsWith(this.#clientNonce) || nonce.length === this.#clientNonce.length) {
      throw malformed('the server’s nonce does not extend ours');
    }
    const salt = decodeBase64(readAttribute(saltAttribute, 's'));
    const iterationsText = readAttribute(iterationsAttribute, 'i');
    const iterations = /^\d{1,10}$/.test(iterationsText) ? Number(iterationsText) : 0;
    if (salt === null || salt.length === 0) throw malformed('malformed salt in server-first-message');
    if (iterations < 1 || iterations > ITERATIONS_MAX) throw malformed('iteration count out of bounds');
    this.#serverFirst = serverFirst;
    this.#nonce = nonce;
    return { salt, iterations };
  }

  /** client-final-message. */
  prove(keys: ScramKeys): string {
    const bound = typeof this.#binding === 'string' ? [] : [this.#binding];
    const input = Buffer.concat([Buffer.from(this.#gs2Header), ...bound]).toString('base64');
    const withoutProof = `c=${input},r=${this.#nonce}`;
    const authMessage = `${this.#firstBare},${this.#serverFirst},${withoutProof}`;
    this.#expectedSignature = hmac(keys.serverKey, authMessage);
    const proof = xor(keys.clientKey, hmac(keys.storedKey, authMessage));
    return `${withoutProof},p=${proof.toString('base64')}`;
  }

  /** Takes server-final-message; false where the server does not know the verifier. */
  accepts(serverFinal: string): boolean {
    const [first = ''] = serverFinal.split(',');
    if (first.startsWith('e=')) return false;
    const signature = decodeBase64(readAttribute(first, 'v'));
    if (this.#expectedSignature === undefined || signature === null) return false;
    return sameSecret(signature, this.#expectedSignature);
  }
}

// ---------------------------------------------------------------------------------------------------------------

function malformed(reason: string, sqlState = '08P01'): UnderstudyError {
  return violation(`malformed SCRAM message: ${reason}`, sqlState);
}

function violation(message: string, sqlState: string): UnderstudyError {
  return new UnderstudyError('protocol-violation', message, { details: { sqlState } });
}

function readAttribute(text: string, name: string): string {
  if (!text.startsWith(`${name}=`)) throw malformed(`attribute ${name} expected`);
  return text.slice(2);
}

/** RFC 5802 `printable`: visible ASCII without the comma. */
function isNonce(text: string): boolean {
  return /^[\x21-\x2b\x2d-\x7e]+$/.test(text);
}

/** Strict, unlike Buffer's own decoder, which skips what it does not know. */
function decodeBase64(text: string): Buffer | null {
  if (!/^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(text)) return null;
  return Buffer.from(text, 'base64');
}

function hmac(key: Buffer, text: string): Buffer {
  return createHmac('sha256', key).update(text, 'utf8').digest();
}

function sha256(bytes: Buffer): Buffer {
  return createHash('sha256').update(bytes).digest();
}

function xor(a: Buffer, b: Buffer): Buffer {
  // Kept as long as a session: a piece of Node's pool would hold the whole of it.
  const result = Buffer.alloc(a.length);
  for (let index = 0; index < a.length; index++) result[index] = (a[index] ?? 0) ^ (b[index] ?? 0);
  return result;
}
