/** Towards servers: every setting holds alike for connections in clients' names and for Understudy's own. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { TLSSocket } from 'node:tls';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { asUnderstudyError } from '../../../src/core/errors.js';
import type { DatabaseEndpoint } from '../../../src/core/ports.js';
import { connectControl } from '../../../src/core/postgres.js';
import { openServerSocket } from '../../../src/core/server-socket.js';
import { openBackend, sendCancel } from '../../../src/proxy/backend/backend.js';
import type { BackendCredentials } from '../../../src/proxy/login/credentials.js';
import { opensslMissing, type Pem } from '../../support/certificates.js';
import { sharedEndpoint } from '../../support/servers.js';
import { PASSWORD, startTlsServer, type TlsServer } from './tls-server.js';

let world: TlsServer;
beforeAll(async () => {
  if (!opensslMissing) world = await startTlsServer();
});
afterAll(async () => {
  if (!opensslMissing) await world[Symbol.asyncDispose]();
});

type Outcome = 'encrypted' | 'plain' | 'refused';

/** In a client's name. */
async function byProxy(endpoint: DatabaseEndpoint, credentials?: BackendCredentials): Promise<Outcome> {
  const { user, database, password: _password, ...address } = endpoint;
  try {
    const backend = await openBackend(
      { side: 'source', ...address },
      { user, database, parameters: new Map() },
      credentials ?? { kind: 'password', password: PASSWORD },
      { connectTimeoutMs: 10_000 },
    );
    backend.socket.destroy();
    return backend.socket instanceof TLSSocket ? 'encrypted' : 'plain';
  } catch (error) {
    expect(['source-unreachable', 'backend-refused']).toContain(
      asUnderstudyError(error, 'internal', '').code,
    );
    return 'refused';
  }
}

/** Of Understudy's own; an ordinary one and a walsender. */
async function byControl(endpoint: DatabaseEndpoint, replication = false): Promise<Outcome> {
  try {
    const client = await connectControl('source', endpoint, { purpose: 'test', replication });
    const { rows } = await client.query<{ ssl: string }>(
      'SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()',
    );
    await client.end();
    return rows[0]?.ssl === 't' ? 'encrypted' : 'plain';
  } catch (error) {
    expect(asUnderstudyError(error, 'internal', '')).toMatchObject({ code: 'source-unreachable' });
    return 'refused';
  }
}

function endpointOf(change: Partial<DatabaseEndpoint>): DatabaseEndpoint {
  return { ...world.endpoint, user: 'alice', password: PASSWORD, ...change };
}

async function outcomeOf(change: Partial<DatabaseEndpoint>): Promise<Outcome> {
  const endpoint = endpointOf(change);
  const [proxied, control] = await Promise.all([byProxy(endpoint), byControl(endpoint)]);
  expect(control).toBe(proxied);
  return proxied;
}

describe.skipIf(opensslMissing)('modes', () => {
  test('decide whether a server that offers both is reached encrypted', async () => {
    const seen = await Promise.all(
      (['disable', 'allow', 'prefer', 'require'] as const).map((tls) => outcomeOf({ tls })),
    );
    expect(seen).toEqual(['plain', 'plain', 'encrypted', 'encrypted']);
  });

  test('allow and prefer take the other way where the server wants that', async () => {
    expect(await outcomeOf({ user: 'tls_only', tls: 'disable' })).toBe('refused');
    expect(await outcomeOf({ user: 'tls_only', tls: 'allow' })).toBe('encrypted');
    expect(await outcomeOf({ user: 'plain_only', tls: 'prefer' })).toBe('plain');
    expect(await outcomeOf({ user: 'plain_only', tls: 'require' })).toBe('refused');
  });

  test('a server without TLS is reached by those that don’t insist', async () => {
    const { port, user, password } = sharedEndpoint('source', 'postgres');
    const reached = async (tls: DatabaseEndpoint['tls']): Promise<Outcome> =>
      await byControl({ ...world.endpoint, port, user, password: password ?? '', tls });
    expect(await reached('allow')).toBe('plain');
    expect(await reached('prefer')).toBe('plain');
    expect(await reached('require')).toBe('refused');
    expect(await reached('verify-full')).toBe('refused');
  });

  test('verify-ca checks who signed, verify-full whose name it is, require too where an authority is given', async () => {
    const ca = world.authority.certPem;
    const other = world.stranger.certPem;
    expect(await outcomeOf({ tls: 'verify-ca', tlsCa: ca })).toBe('encrypted');
    expect(await outcomeOf({ tls: 'verify-ca', tlsCa: other })).toBe('refused');
    expect(await outcomeOf({ tls: 'verify-ca' })).toBe('refused');
    expect(await outcomeOf({ tls: 'verify-full', tlsCa: ca })).toBe('refused');
    expect(await outcomeOf({ tls: 'verify-full', tlsCa: ca, host: 'localhost' })).toBe('encrypted');
    expect(await outcomeOf({ tls: 'require', tlsCa: other })).toBe('refused');
    expect(await outcomeOf({ tls: 'prefer', tlsCa: other })).toBe('encrypted');
  });

  test('a client certificate is shown to a server that asks for one', async () => {
    const { certPem: tlsCert, keyPem: tlsKey } = world.clientCertificate;
    const cert = { user: 'cert_user', tls: 'require', tlsCert, tlsKey } as const;
    expect(await outcomeOf(cert)).toBe('encrypted');
    expect(await outcomeOf({ user: 'cert_user', tls: 'require' })).toBe('refused');
    expect(await outcomeOf({ ...cert, user: 'alice' })).toBe('encrypted');
  });

  test('files that were renewed count from the next connection on; broken ones change nothing', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'understudy-renewed-'));
    const [tlsCa, tlsCert, tlsKey] = ['ca', 'cert', 'key'].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ];
    const { authority, stranger, clientCertificate } = world;
    const foreign = stranger.issue('cert_user');
    const show = async (ca: string, { certPem, keyPem }: Pem): Promise<void> => {
      await Promise.all([writeFile(tlsCa, ca), writeFile(tlsCert, certPem), writeFile(tlsKey, keyPem)]);
    };
    await show(stranger.certPem, foreign);
    // One object, as a running proxy keeps it.
    const {
      user: _user,
      password: _password,
      ...address
    } = endpointOf({
      tls: 'verify-ca',
      tlsCa: stranger.certPem,
      tlsCert: foreign.certPem,
      tlsKey: foreign.keyPem,
      tlsFiles: { tlsCa, tlsCert, tlsKey },
    });
    const reached = (): Promise<boolean> =>
      openServerSocket('source', address, 'tls', AbortSignal.timeout(60_000)).then(
        (socket) => {
          socket.destroy();
          return true;
        },
        () => false,
      );
    try {
      expect(await reached()).toBe(false);
      await show(authority.certPem, clientCertificate);
      expect(await reached()).toBe(true);
      await writeFile(tlsKey, foreign.keyPem);
      expect(await reached()).toBe(true);
      await rm(tlsCa);
      expect(await reached()).toBe(true);
      await show(stranger.certPem, foreign);
      expect(await reached()).toBe(false);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  test('replication connections obey too', async () => {
    const admin = { ...world.endpoint };
    expect(await byControl({ ...admin, tls: 'prefer' }, true)).toBe('encrypted');
    expect(await byControl({ ...admin, tls: 'verify-ca', tlsCa: world.stranger.certPem }, true)).toBe(
      'refused',
    );
  });

  test('direct TLS is spoken to servers that know it, and to no others', async () => {
    expect(await outcomeOf({ tls: 'require', tlsNegotiation: 'direct' })).toBe('encrypted');
    const ca = world.authority.certPem;
    const full = { tls: 'verify-full', tlsCa: ca, host: 'localhost' } as const;
    expect(await outcomeOf({ ...full, tlsNegotiation: 'direct' })).toBe('encrypted');
    const old = sharedEndpoint('source', 'postgres');
    expect(await byControl({ ...old, tls: 'require', tlsNegotiation: 'direct' })).toBe('refused');
  });

  test('a cancel request goes the same way', async () => {
    const { host, port } = world.endpoint;
    for (const tls of ['allow', 'prefer', 'require'] as const) {
      await sendCancel({ side: 'source', host, port, tls }, 1, Buffer.alloc(32), 10_000);
    }
  });
});

describe.skipIf(opensslMissing)('channel binding', () => {
  test('binds proofs where it is required, and refuses to give any where it can’t', async () => {
    const bound = { tls: 'require', channelBinding: 'require' } as const;
    expect(await outcomeOf(bound)).toBe('encrypted');
    expect(await outcomeOf({ ...bound, tlsNegotiation: 'direct' })).toBe('encrypted');
    for (const change of [
      { ...bound, tls: 'disable' },
      { ...bound, user: 'md5_user' },
      { ...bound, user: 'clear_user' },
      { ...bound, user: 'trusted' },
      { ...bound, user: 'plain_only', tls: 'prefer' },
    ] as const) {
      expect(await outcomeOf(change), JSON.stringify(change)).toBe('refused');
    }
  });

  test('may be left out', async () => {
    expect(await outcomeOf({ tls: 'require', channelBinding: 'disable' })).toBe('encrypted');
    expect(await outcomeOf({ tls: 'require', channelBinding: 'prefer', user: 'md5_user' })).toBe('encrypted');
  });
});
