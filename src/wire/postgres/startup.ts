/**
 * Layouts of the phase before ReadyForQuery: the untyped first packets, and authentication messages.
 *
 * A first packet has no type byte: an Int32 length that counts itself, an Int32 code, and what the code asks for.
 * https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
 */
import { UnderstudyError } from '../../core/errors.js';
import { BACKEND, encodeCString, encodeFrame, FRONTEND, PayloadReader } from './messages.js';

/** Shortest first packet: length and code. */
export const STARTUP_PACKET_BYTES_MIN = 8;
/** PostgreSQL's MAX_STARTUP_PACKET_LENGTH, which does not count the length field. */
export const STARTUP_PACKET_BYTES_MAX = 10_000 + 4;

/** 1234 in the high half, which is no protocol's major version. */
export const CANCEL_REQUEST_CODE = 80877102;
export const SSL_REQUEST_CODE = 80877103;
export const GSSENC_REQUEST_CODE = 80877104;
/** Major 3, minor 0. */
export const PROTOCOL_3_0 = 196608;

/** The newest minor version of protocol 3 that is spoken here. What differs from 3.0 is the length of cancel keys. */
export const PROTOCOL_MINOR_MAX = 2;
/** Cancel keys are 4 bytes before 3.2, and 4 to 256 from then on. */
export const CANCEL_KEY_BYTES_MAX = 256;

export type FirstPacket =
  | { readonly kind: 'ssl-request' }
  | { readonly kind: 'gssenc-request' }
  | { readonly kind: 'cancel-request'; readonly processId: number; readonly secretKey: Buffer }
  | {
      readonly kind: 'startup';
      readonly minor: number;
      /** As sent, without `_pq_.` options; a name given twice keeps its last value, as in PostgreSQL. */
      readonly parameters: ReadonlyMap<string, string>;
      /** Names of `_pq_.` options, all unknown here. */
      readonly protocolOptions: readonly string[];
    }
  | { readonly kind: 'unsupported'; readonly major: number; readonly minor: number };

/** Whether a first packet's length field is one PostgreSQL would accept. */
export function isStartupLength(length: number): boolean {
  return length >= STARTUP_PACKET_BYTES_MIN && length <= STARTUP_PACKET_BYTES_MAX;
}

/** The packet behind its length field. Throws `protocol-violation`. */
export function parseFirstPacket(body: Buffer): FirstPacket {
  const reader = new PayloadReader(body, 'startup packet');
  const code = reader.uint32();
  switch (code) {
    case SSL_REQUEST_CODE:
      return { kind: 'ssl-request' };
    case GSSENC_REQUEST_CODE:
      return { kind: 'gssenc-request' };
    case CANCEL_REQUEST_CODE: {
      const processId = reader.uint32();
      if (reader.remaining === 0 || reader.remaining > CANCEL_KEY_BYTES_MAX) {
        throw new UnderstudyError('protocol-violation', 'invalid length of cancel request packet');
      }
      return { kind: 'cancel-request', processId, secretKey: Buffer.from(reader.bytes(reader.remaining)) };
    }
    default:
      break;
  }
  const major = code >>> 16;
  const minor = code & 0xffff;
  if (major !== 3) return { kind: 'unsupported', major, minor };
  return { kind: 'startup', minor, ...parseParameters(reader) };
}

function parseParameters(reader: PayloadReader): {
  readonly parameters: ReadonlyMap<string, string>;
  readonly protocolOptions: readonly string[];
} {
  const parameters = new Map<string, string>();
  const protocolOptions: string[] = [];
  for (let name = reader.cstring(); name !== ''; name = reader.cstring()) {
    const value = reader.cstring();
    if (name.startsWith('_pq_.')) protocolOptions.push(name);
    else parameters.set(name, value);
  }
  if (reader.remaining !== 0) {
    throw new UnderstudyError(
      'protocol-violation',
      'invalid startup packet layout: expected terminator as last byte',
    );
  }
  return { parameters, protocolOptions };
}

function encodeFirstPacket(code: number, rest: Buffer): Buffer {
  const packet = Buffer.allocUnsafe(8 + rest.length);
  packet.writeInt32BE(packet.length, 0);
  packet.writeUInt32BE(code, 4);
  rest.copy(packet, 8);
  return packet;
}

export function encodeSslRequest(): Buffer {
  return encodeFirstPacket(SSL_REQUEST_CODE, Buffer.alloc(0));
}

export function encodeCancelRequest(processId: number, secretKey: Buffer): Buffer {
  const rest = Buffer.allocUnsafe(4 + secretKey.length);
  rest.writeUInt32BE(processId, 0);
  secretKey.copy(rest, 4);
  return encodeFirstPacket(CANCEL_REQUEST_CODE, rest);
}

/** StartupMessage of protocol 3.`minor`. `user` and `database` go first, then `parameters` in their order. */
export function encodeStartup(
  user: string,
  database: string,
  parameters: Iterable<readonly [string, string]>,
  minor = 0,
): Buffer {
  const parts = [
    encodeCString('user'),
    encodeCString(user),
    encodeCString('database'),
    encodeCString(database),
  ];
  for (const [name, value] of parameters) parts.push(encodeCString(name), encodeCString(value));
  parts.push(Buffer.from([0]));
  return encodeFirstPacket(PROTOCOL_3_0 + minor, Buffer.concat(parts));
}

/** Tells a client that wanted a newer version, or options, that it gets 3.`minor` and none of `unknownOptions`. */
export function encodeNegotiateProtocolVersion(minor: number, unknownOptions: readonly string[]): Buffer {
  const head = Buffer.allocUnsafe(8);
  // PostgreSQL sends the whole version here, not the minor alone as its documentation reads; libpq checks for it.
  head.writeInt32BE(PROTOCOL_3_0 + minor, 0);
  head.writeInt32BE(unknownOptions.length, 4);
  return encodeFrame(
    BACKEND.negotiateProtocolVersion,
    Buffer.concat([head, ...unknownOptions.map((name) => encodeCString(name))]),
  );
}

/** Payload of a NegotiateProtocolVersion: the minor version of protocol 3 offered. Throws `protocol-violation`. */
export function parseNegotiateProtocolVersion(payload: Buffer): number {
  const version = new PayloadReader(payload, 'NegotiateProtocolVersion').uint32();
  // Read as documented, or as sent.
  const minor = version >>> 16 === 3 ? version & 0xffff : version;
  if (minor > 0xffff) throw new UnderstudyError('protocol-violation', 'negotiation to another major version');
  return minor;
}

// Authentication. The Int32 that opens every `R` payload:
const AUTH_OK = 0;
const AUTH_CLEARTEXT = 3;
const AUTH_MD5 = 5;
const AUTH_SASL = 10;
const AUTH_SASL_CONTINUE = 11;
const AUTH_SASL_FINAL = 12;

/** What kinds of authentication we know not to speak, for the message that says so. */
const UNSPOKEN: ReadonlyMap<number, string> = new Map([
  [2, 'Kerberos V5'],
  [7, 'GSSAPI'],
  [8, 'GSSAPI'],
  [9, 'SSPI'],
]);

export type AuthenticationMessage =
  | { readonly kind: 'ok' }
  | { readonly kind: 'cleartext' }
  | { readonly kind: 'md5'; readonly salt: Buffer }
  | { readonly kind: 'sasl'; readonly mechanisms: readonly string[] }
  | { readonly kind: 'sasl-continue'; readonly data: string }
  | { readonly kind: 'sasl-final'; readonly data: string }
  | { readonly kind: 'unspoken'; readonly name: string };

function encodeAuthentication(code: number, rest: Buffer = Buffer.alloc(0)): Buffer {
  const payload = Buffer.allocUnsafe(4 + rest.length);
  payload.writeInt32BE(code, 0);
  rest.copy(payload, 4);
  return encodeFrame(BACKEND.authentication, payload);
}

export function encodeAuthenticationOk(): Buffer {
  return encodeAuthentication(AUTH_OK);
}

export function encodeAuthenticationCleartext(): Buffer {
  return encodeAuthentication(AUTH_CLEARTEXT);
}

/** `salt`: 4 random bytes. */
export function encodeAuthenticationMd5(salt: Buffer): Buffer {
  return encodeAuthentication(AUTH_MD5, salt);
}

export function encodeAuthenticationSasl(mechanisms: readonly string[]): Buffer {
  return encodeAuthentication(
    AUTH_SASL,
    Buffer.concat([...mechanisms.map((name) => encodeCString(name)), Buffer.from([0])]),
  );
}

export function encodeAuthenticationSaslContinue(data: string): Buffer {
  return encodeAuthentication(AUTH_SASL_CONTINUE, Buffer.from(data, 'utf8'));
}

export function encodeAuthenticationSaslFinal(data: string): Buffer {
  return encodeAuthentication(AUTH_SASL_FINAL, Buffer.from(data, 'utf8'));
}

/** Payload of an `R` message. Throws `protocol-violation`. */
export function parseAuthentication(payload: Buffer): AuthenticationMessage {
  const reader = new PayloadReader(payload, 'authentication message');
  const code = reader.int32();
  switch (code) {
    case AUTH_OK:
      return { kind: 'ok' };
    case AUTH_CLEARTEXT:
      return { kind: 'cleartext' };
    case AUTH_MD5:
      return { kind: 'md5', salt: Buffer.from(reader.bytes(4)) };
    case AUTH_SASL: {
      const mechanisms: string[] = [];
      for (let name = reader.cstring(); name !== ''; name = reader.cstring()) mechanisms.push(name);
      return { kind: 'sasl', mechanisms };
    }
    case AUTH_SASL_CONTINUE:
      return { kind: 'sasl-continue', data: reader.bytes(reader.remaining).toString('utf8') };
    case AUTH_SASL_FINAL:
      return { kind: 'sasl-final', data: reader.bytes(reader.remaining).toString('utf8') };
    default:
      return { kind: 'unspoken', name: UNSPOKEN.get(code) ?? `authentication ${code}` };
  }
}

/** PasswordMessage: a password, or an MD5 response. Bytes must hold no zero. */
export function encodePassword(password: string | Buffer): Buffer {
  const bytes =
    typeof password === 'string' ? encodeCString(password) : Buffer.concat([password, Buffer.alloc(1)]);
  return encodeFrame(FRONTEND.password, bytes);
}

/** Payload of a PasswordMessage: the password's bytes, which alias it. Throws `protocol-violation`. */
export function parsePassword(payload: Buffer): Buffer {
  const end = payload.indexOf(0);
  if (end === -1) throw new UnderstudyError('protocol-violation', 'malformed password packet');
  if (end !== payload.length - 1) {
    throw new UnderstudyError('protocol-violation', 'invalid password packet size');
  }
  return payload.subarray(0, end);
}

export function encodeSaslInitialResponse(mechanism: string, data: string): Buffer {
  const response = Buffer.from(data, 'utf8');
  const length = Buffer.allocUnsafe(4);
  length.writeInt32BE(response.length, 0);
  return encodeFrame(FRONTEND.password, Buffer.concat([encodeCString(mechanism), length, response]));
}

export function encodeSaslResponse(data: string): Buffer {
  return encodeFrame(FRONTEND.password, Buffer.from(data, 'utf8'));
}

/** Payload of a SASLInitialResponse; `data` is null where the client sends none yet. Throws `protocol-violation`. */
export function parseSaslInitialResponse(payload: Buffer): {
  readonly mechanism: string;
  readonly data: string | null;
} {
  const reader = new PayloadReader(payload, 'SASL initial response');
  const mechanism = reader.cstring();
  const length = reader.int32();
  const data = length === -1 ? null : reader.bytes(length).toString('utf8');
  if (reader.remaining !== 0) {
    throw new UnderstudyError('protocol-violation', 'malformed SASL initial response');
  }
  return { mechanism, data };
}
