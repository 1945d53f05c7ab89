import { createHash, X509Certificate } from 'node:crypto';
import { afterAll, expect, test } from 'vitest';
import { endpointBinding } from '../../src/core/certificate-hash.js';
import { Authority, opensslMissing } from '../support/certificates.js';

const RSA = '-algorithm RSA -pkeyopt rsa_keygen_bits:2048';
const PSS = ['-sigopt', 'rsa_padding_mode:pss', '-sigopt', 'rsa_pss_saltlen:-1'];

const authorities = new Map<string, Authority>();
/** One of each kind: making an RSA key takes a second. */
function authorityOf(key?: string): Authority {
  const known = authorities.get(key ?? '') ?? new Authority(key);
  authorities.set(key ?? '', known);
  return known;
}
afterAll(() => {
  for (const authority of authorities.values()) authority[Symbol.dispose]();
});

// The program is asked for what Node can't make: certificates signed in each way.
test.skipIf(opensslMissing).each([
  ['ECDSA', undefined, 'sha256', [], 'sha256'],
  ['ECDSA', undefined, 'sha384', [], 'sha384'],
  ['ECDSA', undefined, 'sha512', [], 'sha512'],
  ['RSA', RSA, 'sha256', [], 'sha256'],
  ['RSA', RSA, 'sha224', [], 'sha224'],
  ['RSA', RSA, 'sha384', [], 'sha384'],
  ['RSA', RSA, 'sha512', [], 'sha512'],
  // RFC 5929: SHA-256 in place of the broken ones.
  ['RSA', RSA, 'sha1', [], 'sha256'],
  ['RSA', RSA, 'md5', [], 'sha256'],
  ['ECDSA', undefined, 'sha1', [], 'sha256'],
  ['RSA-PSS', RSA, 'sha384', PSS, 'sha384'],
  ['RSA-PSS', RSA, 'sha1', PSS, 'sha256'],
] as const)('%s (%s) signed with %s is hashed as RFC 5929 says', (_name, key, digest, more, expected) => {
  const der = new X509Certificate(authorityOf(key).issue('x', { digest }, more).certPem).raw;
  expect(endpointBinding(der)).toEqual(createHash(expected).update(der).digest());
});

test.skipIf(opensslMissing)('a signature without a hash of its own gives nothing to bind to', () => {
  using authority = new Authority('-algorithm ED25519');
  expect(endpointBinding(new X509Certificate(authority.certPem).raw)).toBeNull();
});

test('what is no certificate gives nothing, wherever it is cut', () => {
  expect(endpointBinding(Buffer.alloc(0))).toBeNull();
  expect(endpointBinding(Buffer.from('3080', 'hex'))).toBeNull();
  expect(endpointBinding(Buffer.from('30850000000000', 'hex'))).toBeNull();
  if (opensslMissing) return;
  const der = new X509Certificate(authorityOf().certPem).raw;
  for (let length = 0; length < der.length; length++)
    expect(endpointBinding(der.subarray(0, length))).toBeNull();
});
