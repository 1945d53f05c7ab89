/**
 * Channel binding `tls-server-end-point`: a hash of the server's certificate, which ties a SCRAM proof to the very TLS
 * connection it is given on.
 *
 * Which hash follows from the certificate's signature (RFC 5929 §4.1): the signature's own, except that MD5 and SHA-1
 * are replaced by SHA-256. A signature without one hash (Ed25519) leaves the binding undefined.
 */
import { createHash } from 'node:crypto';

type HashName = 'sha224' | 'sha256' | 'sha384' | 'sha512';

/** Contents of the OBJECT IDENTIFIERs of signature algorithms, as hex. */
const BY_SIGNATURE: ReadonlyMap<string, HashName> = new Map([
  // RSA PKCS#1 1.5 (RFC 8017): with MD5, SHA-1, SHA-256, SHA-384, SHA-512, SHA-224.
  ['2a864886f70d010104', 'sha256'],
  ['2a864886f70d010105', 'sha256'],
  ['2a864886f70d01010b', 'sha256'],
  ['2a864886f70d01010c', 'sha384'],
  ['2a864886f70d01010d', 'sha512'],
  ['2a864886f70d01010e', 'sha224'],
  // ECDSA (RFC 5758): with SHA-1, SHA-224, SHA-256, SHA-384, SHA-512.
  ['2a8648ce3d0401', 'sha256'],
  ['2a8648ce3d040301', 'sha224'],
  ['2a8648ce3d040302', 'sha256'],
  ['2a8648ce3d040303', 'sha384'],
  ['2a8648ce3d040304', 'sha512'],
  // DSA (RFC 5758): with SHA-1, SHA-224, SHA-256.
  ['2a8648ce380403', 'sha256'],
  ['608648016503040301', 'sha224'],
  ['608648016503040302', 'sha256'],
]);
const RSA_PSS = '2a864886f70d01010a';
/** Hash functions by themselves, as RSA-PSS names its own: SHA-1, SHA-224, SHA-256, SHA-384, SHA-512. */
const BY_HASH: ReadonlyMap<string, HashName> = new Map([
  ['2b0e03021a', 'sha256'],
  ['608648016503040204', 'sha224'],
  ['608648016503040201', 'sha256'],
  ['608648016503040202', 'sha384'],
  ['608648016503040203', 'sha512'],
]);
const SEQUENCE = 0x30;
const OBJECT_IDENTIFIER = 0x06;
/** `[0]` of RSASSA-PSS-params: the hash algorithm, SHA-1 where absent. */
const PSS_HASH = 0xa0;

/**
 * The bytes a client binds to for the certificate `der` (X.509, DER); null where none are defined for its signature,
 * and for what is no certificate.
 */
export function endpointBinding(der: Buffer): Buffer | null {
  const hash = hashOf(der);
  return hash === null ? null : createHash(hash).update(der).digest();
}

/** Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OID, parameters }, … } */
function hashOf(der: Buffer): HashName | null {
  const [, algorithm] = elements(
    elements(der)[0]?.tag === SEQUENCE ? (elements(der)[0]?.content ?? EMPTY) : EMPTY,
  );
  if (algorithm?.tag !== SEQUENCE) return null;
  const [name, parameters] = elements(algorithm.content);
  if (name?.tag !== OBJECT_IDENTIFIER) return null;
  const oid = name.content.toString('hex');
  if (oid !== RSA_PSS) return BY_SIGNATURE.get(oid) ?? null;
  const chosen = elements(parameters?.content ?? EMPTY).find((element) => element.tag === PSS_HASH);
  if (chosen === undefined) return 'sha256';
  const [hash] = elements(elements(chosen.content)[0]?.content ?? EMPTY);
  return hash?.tag === OBJECT_IDENTIFIER ? (BY_HASH.get(hash.content.toString('hex')) ?? null) : null;
}

interface Element {
  readonly tag: number;
  readonly content: Buffer;
}

const EMPTY = Buffer.alloc(0);

/** The DER elements that lie behind one another in `bytes`; none where a length does not fit. */
function elements(bytes: Buffer): readonly Element[] {
  const found: Element[] = [];
  for (let at = 0; at < bytes.length;) {
    const tag = bytes[at] ?? 0;
    const short = bytes[at + 1] ?? 0xff;
    const lengthBytes = short < 0x80 ? 0 : short & 0x7f;
    const start = at + 2 + lengthBytes;
    if (lengthBytes > 4 || start > bytes.length || (short >= 0x80 && lengthBytes === 0)) return [];
    const length = lengthBytes === 0 ? short : bytes.readUIntBE(at + 2, lengthBytes);
    if (start + length > bytes.length) return [];
    found.push({ tag, content: bytes.subarray(start, start + length) });
    at = start + length;
  }
  return found;
}
