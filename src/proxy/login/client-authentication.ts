/**
 * Proof of who a client is, and what of it serves to open servers in its name.
 *
 * Which proof is asked for follows the role's stored secret, as PostgreSQL does for `scram-sha-256` and `md5` lines:
 * SCRAM for a SCRAM verifier, MD5 for an MD5 hash; a secret kept as plain text is asked for by SCRAM too. An unknown
 * role, or one without a password, goes through a whole exchange that can't be won (SCRAM with a salt that stays the same
 * for its name, or MD5 where the server stores passwords that way), and meets the same error: nobody learns from outside which roles exist.
 */
import { createHmac, randomBytes } from 'node:crypto';
import { UnderstudyError, unreachable } from '../../core/errors.js';
import type { Log } from '../../core/log.js';
import type { ErrorResponseFields } from '../../wire/postgres/messages.js';
import { checkMd5Response, md5Secret } from '../../wire/postgres/md5.js';
import {
  checkScramPassword,
  deriveScramKeys,
  sameSecret,
  SCRAM_ITERATIONS_DEFAULT,
  SCRAM_MECHANISM,
  SCRAM_PLUS_MECHANISM,
  ScramServerExchange,
  type ScramVerifier,
} from '../../wire/postgres/scram.js';
import {
  encodeAuthenticationCleartext,
  encodeAuthenticationMd5,
  encodeAuthenticationSasl,
  encodeAuthenticationSaslContinue,
  encodeAuthenticationSaslFinal,
  parsePassword,
  parseSaslInitialResponse,
} from '../../wire/postgres/startup.js';
import type { BackendCredentials } from './credentials.js';
import type { ShownCertificate } from './tls.js';
import type { StoredSecret, VerifierSource } from './verifiers.js';

/**
 * What a client must show.
 * verifier: SCRAM-SHA-256 or MD5, whichever the role's stored secret is. cleartext: the password itself, only over
 * TLS or from this machine, for servers that want it; checked here. pass-through: the same, but the server alone
 * checks it. certificate: a valid TLS certificate whose common name is the user. trust: nothing, only from this
 * machine; any other peer meets `verifier`.
 */
export type ClientAuthentication = (typeof CLIENT_AUTHENTICATIONS)[number];
export const CLIENT_AUTHENTICATIONS = [
  'verifier',
  'cleartext',
  'pass-through',
  'certificate',
  'trust',
] as const;

/** A client is turned away with this FATAL error. */
export class ClientRefused extends UnderstudyError {
  readonly answer: ErrorResponseFields;

  constructor(code: 'auth-failed' | 'protocol-violation', answer: Omit<ErrorResponseFields, 'severity'>) {
    super(code, answer.message, { details: { sqlState: answer.sqlState } });
    this.answer = { ...answer, severity: 'FATAL' };
  }
}

/** The connection, as far as authentication is concerned. */
export interface AuthenticationChannel {
  send(frame: Buffer): void;
  /** Sends it together with what follows. */
  sendWithNext(frame: Buffer): void;
  /** Payload of the client's next `p` message. Rejects where something else comes, or nothing. */
  receive(): Promise<Buffer>;
  /** Whether the peer is this machine. */
  readonly loopback: boolean;
  readonly encrypted: boolean;
  /** What SCRAM-SHA-256-PLUS binds to; null on a plain connection, and for a certificate without a binding. */
  readonly endpointBinding: Buffer | null;
  readonly certificate: ShownCertificate;
}

export interface AuthenticationDeps {
  readonly verifiers: VerifierSource;
  readonly authentication: ClientAuthentication;
  readonly mockSecret: Buffer;
  readonly log: Log;
}

/** Throws {@link ClientRefused}; `protocol-violation` for malformed messages; what the verifier source throws. */
export async function authenticateClient(
  channel: AuthenticationChannel,
  user: string,
  deps: AuthenticationDeps,
): Promise<BackendCredentials> {
  if (deps.authentication === 'pass-through') return await byPassingThrough(channel);
  if (deps.authentication === 'certificate') requireCertificate(channel.certificate, user);
  const secret = await deps.verifiers.lookup(user);
  switch (deps.authentication) {
    case 'certificate':
      return withoutProof(secret);
    case 'trust':
      if (channel.loopback) return withoutProof(secret);
      return await byVerifier(channel, user, secret, deps);
    case 'cleartext':
      return await byCleartext(channel, user, secret, deps);
    case 'verifier':
      return await byVerifier(channel, user, secret, deps);
    default:
      return unreachable(deps.authentication);
  }
}

/** Throws unless the client has shown a valid certificate whose common name is `user`. */
export function requireCertificate(certificate: ShownCertificate, user: string): void {
  if (certificate.kind === 'valid' && certificate.commonName === user) return;
  throw new ClientRefused('auth-failed', {
    sqlState: '28000',
    message:
      certificate.kind === 'valid'
        ? `certificate authentication failed for user "${user}"`
        : 'connection requires a valid client certificate',
  });
}

function passwordFailed(user: string): ClientRefused {
  return new ClientRefused('auth-failed', {
    sqlState: '28P01',
    message: `password authentication failed for user "${user}"`,
  });
}

/** What of a secret opens a server by itself. A SCRAM verifier does not: that is its point. */
function withoutProof(secret: StoredSecret | null): BackendCredentials {
  switch (secret?.kind) {
    case 'plain':
      return { kind: 'password', password: secret.password };
    case 'md5':
      return { kind: 'md5', hash: secret.hash };
    case 'scram':
    case 'none-by-md5':
    case undefined:
      return { kind: 'none' };
    default:
      return unreachable(secret);
  }
}

async function byVerifier(
  channel: AuthenticationChannel,
  user: string,
  secret: StoredSecret | null,
  deps: AuthenticationDeps,
): Promise<BackendCredentials> {
  switch (secret?.kind) {
    case 'md5':
      return await byMd5(channel, user, secret.hash);
    case 'scram': {
      const clientKey = await byScram(channel, user, secret);
      const { storedKey, serverKey, salt, iterations, text: verifier } = secret;
      return { kind: 'scram-keys', clientKey, storedKey, serverKey, salt, iterations, verifier };
    }
    case 'plain': {
      await byScram(channel, user, await verifierOf(secret, user, deps.mockSecret));
      return { kind: 'password', password: secret.password };
    }
    case 'none-by-md5':
    case undefined:
      return await byNothing(channel, user, secret, deps);
    default:
      return unreachable(secret);
  }
}

/** Stable for a name, and not to be told from a real one. */
function mockSalt(user: string, mockSecret: Buffer): Buffer {
  return createHmac('sha256', mockSecret).update(user, 'utf8').digest().subarray(0, 16);
}

/** Made once per secret a source holds: a login must not take longer because its secret is plain text. */
const madeVerifiers = new WeakMap<StoredSecret, Promise<ScramVerifier>>();

function verifierOf(
  secret: StoredSecret & { readonly kind: 'plain' },
  user: string,
  mockSecret: Buffer,
): Promise<ScramVerifier> {
  const known = madeVerifiers.get(secret);
  if (known !== undefined) return known;
  const salt = mockSalt(user, mockSecret);
  const iterations = SCRAM_ITERATIONS_DEFAULT;
  const made = deriveScramKeys(secret.password, salt, iterations).then((keys) => ({
    iterations,
    salt,
    storedKey: keys.storedKey,
    serverKey: keys.serverKey,
  }));
  madeVerifiers.set(secret, made);
  return made;
}

async function byNothing(
  channel: AuthenticationChannel,
  user: string,
  secret: { readonly kind: 'none-by-md5' } | null,
  deps: AuthenticationDeps,
): Promise<never> {
  deps.log.info(
    { user, advice: 'Give the role a password (ALTER ROLE … PASSWORD), or add it to the users file.' },
    'no password is stored for the role a client wants to be',
  );
  if (secret !== null) await byMd5(channel, user, md5Secret(user, randomBytes(32)));
  await byScram(channel, user, {
    iterations: SCRAM_ITERATIONS_DEFAULT,
    salt: mockSalt(user, deps.mockSecret),
    storedKey: randomBytes(32),
    serverKey: randomBytes(32),
  });
  throw passwordFailed(user);
}

/** Returns the client's key. */
async function byScram(
  channel: AuthenticationChannel,
  user: string,
  verifier: ScramVerifier,
): Promise<Buffer> {
  const { endpointBinding } = channel;
  const offered = endpointBinding === null ? [SCRAM_MECHANISM] : [SCRAM_PLUS_MECHANISM, SCRAM_MECHANISM];
  channel.send(encodeAuthenticationSasl(offered));
  const initial = parseSaslInitialResponse(await channel.receive());
  if (!offered.includes(initial.mechanism) || initial.data === null) {
    throw new ClientRefused('protocol-violation', {
      sqlState: '08P01',
      message: 'client selected an invalid SASL authentication mechanism',
    });
  }
  const exchange = new ScramServerExchange(verifier, randomBytes(18).toString('base64'), {
    bound: initial.mechanism === SCRAM_PLUS_MECHANISM,
    endpoint: endpointBinding,
  });
  channel.send(encodeAuthenticationSaslContinue(exchange.challenge(initial.data)));
  const proven = exchange.finish((await channel.receive()).toString('utf8'));
  if (proven === null) throw passwordFailed(user);
  channel.sendWithNext(encodeAuthenticationSaslFinal(proven.serverFinal));
  return proven.clientKey;
}

async function byMd5(
  channel: AuthenticationChannel,
  user: string,
  hash: string,
): Promise<BackendCredentials> {
  const salt = randomBytes(4);
  channel.send(encodeAuthenticationMd5(salt));
  const response = parsePassword(await channel.receive());
  if (!checkMd5Response(hash, salt, response)) throw passwordFailed(user);
  return { kind: 'md5', hash };
}

async function byCleartext(
  channel: AuthenticationChannel,
  user: string,
  secret: StoredSecret | null,
  deps: AuthenticationDeps,
): Promise<BackendCredentials> {
  const password = await askPassword(channel);
  if (!(await isPassword(user, secret, password, deps.mockSecret))) throw passwordFailed(user);
  return { kind: 'given-password', password, proven: true };
}

/** Nothing is known here of the role, so nothing can be told apart: the server's answer is the client's. */
async function byPassingThrough(channel: AuthenticationChannel): Promise<BackendCredentials> {
  return { kind: 'given-password', password: await askPassword(channel), proven: false };
}

/** The password's bytes, in memory of their own. */
async function askPassword(channel: AuthenticationChannel): Promise<Buffer> {
  if (!channel.encrypted && !channel.loopback) {
    throw new ClientRefused('auth-failed', {
      sqlState: '28000',
      message: 'this proxy takes passwords over TLS only',
      hint: 'Connect with sslmode=require.',
    });
  }
  channel.send(encodeAuthenticationCleartext());
  const payload = await channel.receive();
  const given = parsePassword(payload);
  if (given.length === 0) {
    throw new ClientRefused('auth-failed', {
      sqlState: '28P01',
      message: 'empty password returned by client',
    });
  }
  const password = Buffer.alloc(given.length, given);
  payload.fill(0);
  return password;
}

async function isPassword(
  user: string,
  secret: StoredSecret | null,
  password: Buffer,
  mockSecret: Buffer,
): Promise<boolean> {
  switch (secret?.kind) {
    case 'scram':
      return await checkScramPassword(secret, password);
    case 'md5':
      return sameSecret(Buffer.from(md5Secret(user, password)), Buffer.from(secret.hash));
    case 'plain':
      return sameSecret(Buffer.from(secret.password), password);
    case 'none-by-md5':
    case undefined:
      // The work of a real check, so that time does not tell which roles exist.
      await deriveScramKeys(password, mockSalt(user, mockSecret), SCRAM_ITERATIONS_DEFAULT);
      return false;
    default:
      return unreachable(secret);
  }
}
