import fc from 'fast-check';
import { expect, test } from 'vitest';
import { UnderstudyError } from '../../src/core/errors.js';
import {
  encodeBackendKeyData,
  encodeCommandComplete,
  encodeErrorResponse,
  encodeParameterStatus,
  encodeParse,
  encodeQuery,
  encodeReadyForQuery,
  encodeSync,
  encodeTerminate,
  FRAME_HEADER_BYTES,
  parseBackendKeyData,
  parseDataRow,
  parseErrorFields,
  parseParameterStatus,
} from '../../src/wire/postgres/messages.js';

/** Text a protocol string can hold: well-formed, no zero byte. */
const text = fc.string({ unit: 'grapheme', maxLength: 40 }).map((value) => value.replaceAll('\0', ''));

function payloadOf(frame: Buffer): Buffer {
  expect(frame.readInt32BE(1)).toBe(frame.length - 1);
  return frame.subarray(FRAME_HEADER_BYTES);
}

/** Made by hand from the documentation's message formats, not by the code under test. */
function dataRow(values: readonly (string | null)[]): Buffer {
  const parts = [Buffer.from([values.length >> 8, values.length & 0xff])];
  for (const value of values) {
    const bytes = Buffer.from(value ?? '');
    const length = Buffer.alloc(4);
    length.writeInt32BE(value === null ? -1 : bytes.length);
    parts.push(length, bytes);
  }
  return Buffer.concat(parts);
}

test('messages come out byte for byte as the protocol’s documentation lays them out', () => {
  expect(encodeReadyForQuery('T').toString('latin1')).toBe('Z\0\0\0\x05T');
  expect(encodeQuery('SELECT 1').toString('latin1')).toBe('Q\0\0\0\rSELECT 1\0');
  expect(encodeSync().toString('latin1')).toBe('S\0\0\0\x04');
  expect(encodeTerminate().toString('latin1')).toBe('X\0\0\0\x04');
  expect(encodeCommandComplete('SET').toString('latin1')).toBe('C\0\0\0\x08SET\0');
  expect(encodeParameterStatus('a', 'b').toString('latin1')).toBe('S\0\0\0\x08a\0b\0');
  expect(encodeBackendKeyData(0xfffffffe, Buffer.from('abcd')).toString('hex')).toBe(
    `4b0000000cfffffffe${Buffer.from('abcd').toString('hex')}`,
  );
  expect(encodeParse('s', 'SELECT $1', [23, 0]).toString('latin1')).toBe(
    'P\0\0\0\x1as\0SELECT $1\0\0\x02\0\0\0\x17\0\0\0\0',
  );
});

test('an error keeps its fields, with the severity in both its forms', () => {
  const frame = encodeErrorResponse({ severity: 'FATAL', sqlState: '57P01', message: 'bye', hint: 'again' });
  expect(frame.toString('latin1', 5)).toBe('SFATAL\0VFATAL\0C57P01\0Mbye\0Hagain\0\0');
  fc.assert(
    fc.property(text, text, fc.option(text), (message, detail, hint) => {
      const fields = { sqlState: 'UFENC', message, detail, ...(hint === null ? {} : { hint }) };
      expect(parseErrorFields(payloadOf(encodeErrorResponse(fields)))).toEqual({
        severity: 'ERROR',
        ...fields,
      });
    }),
  );
});

test('a zero byte in an error’s text does not end its field early', () => {
  const payload = payloadOf(encodeErrorResponse({ sqlState: '08P01', message: 'a\0Mb' }));
  expect(parseErrorFields(payload).message).toBe('aMb');
  expect(() => encodeQuery('SELECT 1\0; DROP')).toThrow(UnderstudyError);
});

test('the untranslated severity wins over the translated one', () => {
  const payload = Buffer.from('SFEHLER\0VERROR\0C42601\0Mx\0\0');
  expect(parseErrorFields(payload).severity).toBe('ERROR');
  expect(parseErrorFields(Buffer.from('SFEHLER\0C42601\0Mx\0\0')).severity).toBe('FEHLER');
});

test('rows come back as they were, null apart from empty', () => {
  expect(parseDataRow(dataRow(['1', '', null]))).toEqual(['1', '', null]);
  fc.assert(
    fc.property(fc.array(fc.option(text), { maxLength: 20 }), (values) => {
      expect(parseDataRow(dataRow(values))).toEqual(values);
    }),
  );
});

test('parameters and cancel keys come back as they were', () => {
  fc.assert(
    fc.property(text, text, fc.nat(0xffffffff), fc.uint8Array({ maxLength: 64 }), (name, value, pid, key) => {
      expect(parseParameterStatus(payloadOf(encodeParameterStatus(name, value)))).toEqual({ name, value });
      const secret = Buffer.from(key);
      expect(parseBackendKeyData(payloadOf(encodeBackendKeyData(pid, secret)))).toEqual({ pid, secret });
    }),
  );
});

test('any bytes are either parsed or refused as a protocol violation, never read past their end', () => {
  const parsers = [parseErrorFields, parseDataRow, parseParameterStatus, parseBackendKeyData];
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

test('every cut of a valid row is refused', () => {
  const whole = dataRow(['one', null, 'three']);
  for (let length = 0; length < whole.length; length++) {
    expect(() => parseDataRow(whole.subarray(0, length))).toThrow(UnderstudyError);
  }
  expect(() => parseDataRow(Buffer.concat([whole, Buffer.from([0])]))).toThrow(UnderstudyError);
});
