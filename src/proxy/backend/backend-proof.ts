/**
 * Proves to a server, in a client's name, who the client is; and by SCRAM has the server prove that it knows the
 * client's password too.
 */
import { randomBytes } from 'node:crypto';
import { UnderstudyError, unreachable } from '../../core/errors.js';
import type { ChannelBinding } from '../../core/ports.js';
import { md5Response, md5Secret } from '../../wire/postgres/md5.js';
import { BACKEND } from '../../wire/postgres/messages.js';
import {
  deriveScramKeys,
  SCRAM_MECHANISM,
  SCRAM_PLUS_MECHANISM,
  ScramClientExchange,
  type ClientBinding,
  type ScramKeys,
} from '../../wire/postgres/scram.js';
import {
  encodePassword,
  encodeSaslInitialResponse,
  encodeSaslResponse,
  parseAuthentication,
  type AuthenticationMessage,
} from '../../wire/postgres/startup.js';
import { refusedBecause, type BackendRefused, type NamedServer } from './backend-refused.js';
import { passwordOf, type BackendCredentials } from '../login/credentials.js';

/** The connection, as far as the proof is concerned. */
export interface ProofLine {
  readonly server: NamedServer;
  readonly channelBinding: ChannelBinding;
  readonly encrypted: boolean;
  /** What a SCRAM proof can be bound to; null on a plain connection, and for a certificate without a binding. */
  readonly endpointBinding: Buffer | null;
  send(frame: Buffer): void;
  /** The next message that is not a notice. */
  receive(): Promise<{ readonly type: number; readonly payload: Buffer }>;
}

/**
 * Answers the server's request for a proof, up to AuthenticationOk. Throws {@link BackendRefused} where the
 * credentials don't hold what is asked for, or the server can't be let off that easily; `protocol-violation`.
 */
export async function proveIdentity(
  line: ProofLine,
  user: string,
  credentials: BackendCredentials,
): Promise<void> {
  const request = await receiveAuthentication(line);
  if (line.channelBinding === 'require' && request.kind !== 'sasl') throw unbound(line.server);
  switch (request.kind) {
    case 'ok':
      if (credentials.kind === 'given-password' && !credentials.proven) throw unasked(line.server, user);
      return;
    case 'cleartext': {
      const password = passwordOf(credentials);
      if (password === undefined) throw noProofFor(line.server, user, 'a cleartext password');
      line.send(encodePassword(password));
      break;
    }
    case 'md5': {
      const stored = md5Of(user, credentials);
      if (stored === undefined) throw noProofFor(line.server, user, 'an MD5 password');
      line.send(encodePassword(md5Response(stored, request.salt)));
      break;
    }
    case 'sasl':
      await proveByScram(line, user, request.mechanisms, credentials);
      break;
    case 'unspoken':
      throw noProofFor(line.server, user, request.name);
    case 'sasl-continue':
    case 'sasl-final':
      throw new UnderstudyError('protocol-violation', `${request.kind} before any SASL exchange`);
    default:
      return unreachable(request);
  }
  const { kind } = await receiveAuthentication(line);
  if (kind !== 'ok') throw new UnderstudyError('protocol-violation', `${kind} in place of AuthenticationOk`);
  if (credentials.kind === 'given-password') credentials.proven = true;
}

async function receiveAuthentication(line: ProofLine): Promise<AuthenticationMessage> {
  const { type, payload } = await line.receive();
  if (type !== BACKEND.authentication) {
    throw new UnderstudyError('protocol-violation', `message type ${type} in place of authentication`);
  }
  return parseAuthentication(payload);
}

function md5Of(user: string, credentials: BackendCredentials): string | undefined {
  if (credentials.kind === 'md5') return credentials.hash;
  const password = passwordOf(credentials);
  return password === undefined ? undefined : md5Secret(user, password);
}

/** As libpq chooses: bound where both can, and saying that it could where the server seems not to. */
function bindingFor(line: ProofLine, mechanisms: readonly string[]): ClientBinding {
  const { channelBinding, endpointBinding } = line;
  if (channelBinding === 'disable') return 'n';
  if (endpointBinding !== null && mechanisms.includes(SCRAM_PLUS_MECHANISM)) return endpointBinding;
  if (channelBinding === 'require') throw unbound(line.server);
  return endpointBinding === null ? 'n' : 'y';
}

async function proveByScram(
  line: ProofLine,
  user: string,
  mechanisms: readonly string[],
  credentials: BackendCredentials,
): Promise<void> {
  const exchange = new ScramClientExchange(randomBytes(18).toString('base64'), bindingFor(line, mechanisms));
  if (!mechanisms.includes(exchange.mechanism)) throw noProofFor(line.server, user, mechanisms.join(' or '));
  const password = passwordOf(credentials);
  if (password === undefined && credentials.kind !== 'scram-keys') {
    throw noProofFor(line.server, user, SCRAM_MECHANISM);
  }
  line.send(encodeSaslInitialResponse(exchange.mechanism, exchange.first()));
  const challenge = await receiveAuthentication(line);
  if (challenge.kind !== 'sasl-continue') {
    throw new UnderstudyError('protocol-violation', `${challenge.kind} in place of a SASL challenge`);
  }
  const { salt, iterations } = exchange.readChallenge(challenge.data);
  line.send(
    encodeSaslResponse(exchange.prove(await keysFor(line.server, user, credentials, salt, iterations))),
  );
  const last = await receiveAuthentication(line);
  if (last.kind !== 'sasl-final' || !exchange.accepts(last.data)) {
    throw refusedBecause(line.server, {
      sqlState: '28000',
      message: `the ${line.server.side} could not prove that it knows the password of role "${user}"`,
    });
  }
}

async function keysFor(
  server: NamedServer,
  user: string,
  credentials: BackendCredentials,
  salt: Buffer,
  iterations: number,
): Promise<ScramKeys> {
  const password = passwordOf(credentials);
  if (password !== undefined) return await deriveScramKeys(password, salt, iterations);
  const same =
    credentials.kind === 'scram-keys' &&
    salt.equals(credentials.salt) &&
    iterations === credentials.iterations;
  if (same) return credentials;
  throw refusedBecause(server, {
    sqlState: '28P01',
    message: `password authentication failed for user "${user}"`,
    detail: `The ${server.side} holds another SCRAM verifier for this role, or none.`,
    hint: "Give the role the same verifier on both sides: ALTER ROLE … PASSWORD 'SCRAM-SHA-256$…'.",
  });
}

function noProofFor(server: NamedServer, user: string, wanted: string): BackendRefused {
  return refusedBecause(server, {
    sqlState: '28000',
    message: `the ${server.side} asks role "${user}" for ${wanted}, which the proxy can’t give in the client’s name`,
    hint: 'Let clients prove themselves to the proxy by cleartext over TLS, or use scram-sha-256 in pg_hba.conf.',
  });
}

/** The server trusts the proxy's address; the client's password would be checked by nobody. */
function unasked(server: NamedServer, user: string): BackendRefused {
  return refusedBecause(server, {
    sqlState: '28000',
    message: `the ${server.side} does not ask role "${user}" for its password, so nobody would check it`,
    hint: 'Use scram-sha-256 for the proxy’s address in pg_hba.conf, or auth.method verifier.',
  });
}

function unbound(server: NamedServer): BackendRefused {
  return refusedBecause(server, {
    sqlState: '28000',
    message: `channel binding is required, and the ${server.side} does not offer it`,
    hint: 'The server must be reached over TLS and ask for scram-sha-256.',
  });
}
