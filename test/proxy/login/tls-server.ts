/** A PostgreSQL 18 of its own with TLS on, a role for each way in, and what both sides need to trust each other. */
import { chownSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type pg from 'pg';
import { type EmbeddedServer, SUPERUSER, SUPERUSER_PASSWORD } from '../../../src/app/demo/embedded-server.js';
import type { DatabaseEndpoint } from '../../../src/core/ports.js';
import { connectControl } from '../../../src/core/postgres.js';
import { Authority, type Pem } from '../../support/certificates.js';
import { FAST_SETTINGS } from '../../support/global-setup.js';
import { until, ownServer } from '../../support/servers.js';

export const PASSWORD = 'correct horse';
const HBA = [
  'hostssl all cert_user 127.0.0.1/32 cert',
  'hostssl all tls_only 127.0.0.1/32 scram-sha-256',
  'host all tls_only 127.0.0.1/32 reject',
  'hostnossl all plain_only 127.0.0.1/32 scram-sha-256',
  'host all plain_only 127.0.0.1/32 reject',
  'host all md5_user 127.0.0.1/32 md5',
  'host all trusted 127.0.0.1/32 trust',
  'host all clear_user 127.0.0.1/32 password',
  'host all all 127.0.0.1/32 scram-sha-256',
  'local all all scram-sha-256',
];
const ROLES = ['alice', 'cert_user', 'tls_only', 'plain_only', 'trusted', 'clear_user'];

export interface TlsServer extends AsyncDisposable {
  readonly server: EmbeddedServer;
  readonly authority: Authority;
  /** Signed by nobody that anybody trusts. */
  readonly stranger: Authority;
  readonly clientCertificate: Pem;
  readonly control: pg.Client;
  /** As superuser, over plain TCP. */
  readonly endpoint: DatabaseEndpoint;
}

export async function startTlsServer(settings: Readonly<Record<string, string>> = {}): Promise<TlsServer> {
  const authority = new Authority();
  const stranger = new Authority();
  const server = await ownServer({
    version: 18,
    settings: { ...FAST_SETTINGS, ...settings },
    hba: HBA,
  });
  const endpoint = {
    host: '127.0.0.1',
    port: server.port,
    database: 'postgres',
    user: SUPERUSER,
    password: SUPERUSER_PASSWORD,
    tls: 'disable',
  } as const;
  const control = await connectControl('source', endpoint, { purpose: 'test' });
  for (const role of ROLES) await control.query(`CREATE ROLE ${role} LOGIN PASSWORD '${PASSWORD}'`);
  await control.query(`SET password_encryption = md5; CREATE ROLE md5_user LOGIN PASSWORD '${PASSWORD}'`);
  // SHA-384, so that a binding that always took SHA-256 would fail.
  const shown = authority.issue('localhost', { names: 'DNS:localhost', digest: 'sha384' });
  const { uid, gid } = statSync(join(server.folder, 'data'));
  for (const [setting, pem] of [
    ['ssl_key_file', shown.keyPem],
    ['ssl_cert_file', shown.certPem],
    ['ssl_ca_file', authority.certPem],
  ] as const) {
    const path = join(server.folder, `${setting}.pem`);
    writeFileSync(path, pem, { mode: 0o600 });
    chownSync(path, uid, gid);
    await control.query(`ALTER SYSTEM SET ${setting} = '${path}'`);
  }
  await control.query('ALTER SYSTEM SET ssl = on');
  await control.query('SELECT pg_reload_conf()');
  await until(async () => {
    const { rows } = await control.query<{ ssl: string }>('SHOW ssl');
    return rows[0]?.ssl === 'on';
  });
  return {
    server,
    authority,
    stranger,
    clientCertificate: authority.issue('cert_user'),
    control,
    endpoint,
    async [Symbol.asyncDispose]() {
      await control.end();
      await server[Symbol.asyncDispose]();
      authority[Symbol.dispose]();
      stranger[Symbol.dispose]();
    },
  };
}
