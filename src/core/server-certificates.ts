/**
 * What TLS towards a server is done with: the authority that it is checked against, and the certificate of our own.
 *
 * Where an address names the files, they are looked at again for every connection, as libpq does: a certificate that
 * was renewed is used from the next connection on, in every thread and process, without being told. Files that can't be
 * read, or don't belong together (they are renewed one after the other), leave what was used before in force.
 */
import { X509Certificate } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import tls from 'node:tls';
import { UnderstudyError, invariant } from './errors.js';
import type { ServerAddress } from './ports.js';

interface Known {
  /** Of the files; undefined for what came with the address itself. */
  readonly version: string | undefined;
  readonly context: tls.SecureContext;
}

interface Pems {
  readonly tlsCa?: string | undefined;
  readonly tlsCert?: string | undefined;
  readonly tlsKey?: string | undefined;
}

/** Contexts hold the parsed certificates, which is too slow to do for each connection. */
const contexts = new WeakMap<ServerAddress, Known>();

/** Throws where not even what came with the address can be used. */
export async function secureContextOf(address: ServerAddress): Promise<tls.SecureContext> {
  const known = contexts.get(address);
  if (address.tlsFiles === undefined) return remember(address, known, undefined, address);
  try {
    const { tlsCa, tlsCert, tlsKey } = address.tlsFiles;
    const files = [tlsCa, tlsCert, tlsKey];
    const version = (await Promise.all(files.map(versionOf))).join('\n');
    if (known?.version === version) return known.context;
    const [ca, cert, key] = await Promise.all(files.map(contentOf));
    const pems = { tlsCa: ca, tlsCert: cert, tlsKey: key };
    checkAuthority(pems);
    return remember(address, undefined, version, pems);
  } catch {
    return remember(address, known, undefined, address);
  }
}

function remember(
  address: ServerAddress,
  known: Known | undefined,
  version: string | undefined,
  pems: Pems,
): tls.SecureContext {
  if (known !== undefined) return known.context;
  const context = contextWith(pems);
  contexts.set(address, { version, context });
  return context;
}

function contextWith({ tlsCa, tlsCert, tlsKey }: Pems): tls.SecureContext {
  return tls.createSecureContext({
    minVersion: 'TLSv1.2',
    ...(tlsCa === undefined ? {} : { ca: tlsCa }),
    ...(tlsCert === undefined ? {} : { cert: tlsCert }),
    ...(tlsKey === undefined ? {} : { key: tlsKey }),
  });
}

/** An authority that is none is no error to OpenSSL: it would only find every server untrusted. */
function checkAuthority({ tlsCa }: Pems): void {
  if (tlsCa === undefined) return;
  const { raw } = new X509Certificate(tlsCa);
  invariant(raw.length > 0, 'a certificate has bytes');
}

async function versionOf(file: string | undefined): Promise<string> {
  if (file === undefined) return '';
  const { mtimeNs, size, ino } = await stat(file, { bigint: true });
  return `${mtimeNs} ${size} ${ino}`;
}

function contentOf(file: string | undefined): Promise<string | undefined> {
  return file === undefined ? Promise.resolve(undefined) : readFile(file, 'utf8');
}

/** Throws `config-invalid` where a certificate and its key can't be read or don't belong together. */
export function checkServerCertificates(name: string, address: ServerAddress): void {
  try {
    checkAuthority(address);
    contextWith(address);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new UnderstudyError('config-invalid', `${name}.tlsCa, tlsCert, tlsKey: ${reason}`, {
      cause: error,
    });
  }
}
