import fc from 'fast-check';
import { expect, test } from 'vitest';
import { UnderstudyError } from '../../src/core/errors.js';
import { FRAME_HEADER_BYTES } from '../../src/wire/postgres/messages.js';
import {
  encodeAuthenticationCleartext,
  encodeAuthenticationMd5,
  encodeAuthenticationOk,
  encodeAuthenticationSasl,
  encodeAuthenticationSaslContinue,
  encodeAuthenticationSaslFinal,
  encodeCancelRequest,
  encodeNegotiateProtocolVersion,
  encodePassword,
  encodeSaslInitialResponse,
  encodeSslRequest,
  encodeStartup,
  isStartupLength,
  parseAuthentication,
  parseFirstPacket,
  parsePassword,
  parseSaslInitialResponse,
} from '../../src/wire/postgres/startup.js';

const bodyOf = (packet: Buffer): Buffer => {
  expect(packet.readInt32BE(0)).toBe(packet.length);
  return packet.subarray(4);
};
const payloadOf = (frame: Buffer): Buffer => frame.subarray(FRAME_HEADER_BYTES);
const packet = (code: number, rest: string): Buffer => {
  const body = Buffer.alloc(4 + Buffer.byteLength(rest, 'latin1'));
  body.writeUInt32BE(code, 0);
  body.write(rest, 4, 'latin1');
  return body;
};

test('first packets come out as the documentation lays them out', () => {
  expect(encodeSslRequest().toString('hex')).toBe('0000000804d2162f');
  expect(encodeCancelRequest(7, Buffer.from('deadbeef', 'hex')).toString('hex')).toBe(
    '0000001004d2162e00000007deadbeef',
  );
  expect(encodeStartup('u', 'd', [['k', 'v']]).toString('latin1')).toBe(
    '\0\0\0\x1f\0\x03\0\0user\0u\0database\0d\0k\0v\0\0',
  );
});

test('first packets are told apart', () => {
  expect(parseFirstPacket(packet(80877103, ''))).toEqual({ kind: 'ssl-request' });
  expect(parseFirstPacket(packet(80877104, ''))).toEqual({ kind: 'gssenc-request' });
  expect(parseFirstPacket(packet(0x00020000, 'old'))).toEqual({ kind: 'unsupported', major: 2, minor: 0 });
  expect(parseFirstPacket(bodyOf(encodeCancelRequest(0xfffffff0, Buffer.alloc(4, 1))))).toEqual({
    kind: 'cancel-request',
    processId: 0xfffffff0,
    secretKey: Buffer.alloc(4, 1),
  });
});

test('a startup packet keeps its parameters in order, and protocol options apart', () => {
  const name = fc.stringMatching(/^[a-z][a-z_.]{0,20}$/);
  const value = fc.string({ unit: 'grapheme', maxLength: 30 }).map((text) => text.replaceAll('\0', ''));
  fc.assert(
    fc.property(fc.dictionary(name, value), (dictionary) => {
      const parameters = Object.entries(dictionary).filter(([key]) => key !== 'user' && key !== 'database');
      expect(parseFirstPacket(bodyOf(encodeStartup('me', 'mine', parameters)))).toEqual({
        kind: 'startup',
        minor: 0,
        parameters: new Map([['user', 'me'], ['database', 'mine'], ...parameters]),
        protocolOptions: [],
      });
    }),
  );
  expect(parseFirstPacket(packet(0x00030002, 'user\0u\0_pq_.x\x001\0\0'))).toEqual({
    kind: 'startup',
    minor: 2,
    parameters: new Map([['user', 'u']]),
    protocolOptions: ['_pq_.x'],
  });
});

test('a startup packet without its end, or with something behind it, is refused', () => {
  for (const rest of ['', 'user\0u\0', 'user\0u', 'user\0u\0\0x', 'user\0']) {
    expect(() => parseFirstPacket(packet(196608, rest)), rest).toThrow(UnderstudyError);
  }
  expect(() => parseFirstPacket(packet(80877102, 'abcd'))).toThrow(UnderstudyError);
  expect(() => parseFirstPacket(packet(80877102, 'abcd'.repeat(70)))).toThrow(UnderstudyError);
});

test('lengths outside PostgreSQL’s own bounds are no startup packets', () => {
  expect([0, 4, 7, 10_005, 0x47455420, 0x7fffffff, 0xffffffff].filter(isStartupLength)).toEqual([]);
  expect([8, 10_004].filter(isStartupLength)).toEqual([8, 10_004]);
});

test('a newer client is told 3.0 as a whole version, and the options that are not known', () => {
  expect(encodeNegotiateProtocolVersion(0, ['_pq_.x']).toString('latin1')).toBe(
    'v\0\0\0\x13\0\x03\0\0\0\0\0\x01_pq_.x\0',
  );
});

test('authentication messages come back as they were', () => {
  const salt = Buffer.from([1, 2, 3, 4]);
  const cases = [
    [encodeAuthenticationOk(), { kind: 'ok' }],
    [encodeAuthenticationCleartext(), { kind: 'cleartext' }],
    [encodeAuthenticationMd5(salt), { kind: 'md5', salt }],
    [encodeAuthenticationSasl(['A', 'B']), { kind: 'sasl', mechanisms: ['A', 'B'] }],
    [encodeAuthenticationSaslContinue('r=x'), { kind: 'sasl-continue', data: 'r=x' }],
    [encodeAuthenticationSaslFinal('v=x'), { kind: 'sasl-final', data: 'v=x' }],
    [Buffer.from('R\0\0\0\x08\0\0\0\x07', 'latin1'), { kind: 'unspoken', name: 'GSSAPI' }],
  ] as const;
  for (const [frame, expected] of cases) expect(parseAuthentication(payloadOf(frame))).toEqual(expected);
  expect(parsePassword(payloadOf(encodePassword('gehe im'))).toString()).toBe('gehe im');
  expect(parseSaslInitialResponse(payloadOf(encodeSaslInitialResponse('M', 'n,,')))).toEqual({
    mechanism: 'M',
    data: 'n,,',
  });
  expect(parseSaslInitialResponse(Buffer.from('M\0\xff\xff\xff\xff', 'latin1')).data).toBeNull();
});

test('any bytes are either parsed or refused as a protocol violation', () => {
  const parsers = [parseFirstPacket, parseAuthentication, parsePassword, parseSaslInitialResponse];
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), fc.constantFrom(...parsers), (bytes, parse) => {
      try {
        parse(Buffer.from(bytes));
      } catch (error) {
        expect(error).toBeInstanceOf(UnderstudyError);
        expect((error as UnderstudyError).code).toBe('protocol-violation');
      }
    }),
    { numRuns: 2_000 },
  );
});
