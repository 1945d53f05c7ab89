/** Who Understudy is, whom it listens to, and the two databases. */
import { z } from 'zod';
import { CHANNEL_BINDINGS, TLS_MODES, TLS_NEGOTIATIONS } from '../../../core/ports.js';
import { CLIENT_AUTHENTICATIONS } from '../../../proxy/login/client-authentication.js';
import {
  choice,
  flag,
  leaves,
  nameMap,
  octal,
  optionalChoice,
  optionalFile,
  optionalText,
  port,
  requiredText,
  text,
} from '../leaf.js';

const databaseSection = (side: 'source' | 'destination', what: string) =>
  z.strictObject({
    url: requiredText(`${what}, with the account Understudy itself uses.`, {
      expected: 'a URL such as postgres://user:password@host:5432/database',
      example: `postgres://understudy:\${${side.toUpperCase()}_PASSWORD}@${side}.example.com:5432/shop`,
      secret: true,
    }),
    password: optionalText(
      'The password, where it should not stand in the URL. Taken as it is, not decoded.',
      {
        expected: 'a text',
        secret: true,
        defaultText: 'as in the URL',
        example: `\${${side.toUpperCase()}_PASSWORD}`,
      },
    ),
    passwordFile: optionalFile('A file whose first line is the password.', `/run/secrets/${side}-password`),
    tls: optionalChoice(
      "As libpq's sslmode. Overrides `?sslmode=` in the URL.",
      TLS_MODES,
      '`disable` on loopback and unix sockets, else `verify-full`',
      'verify-full',
    ),
    tlsCa: optionalFile(
      "PEM file of the authority that signed the server's certificate.",
      '/etc/understudy/ca.pem',
    ),
    tlsCert: optionalFile(
      'PEM file of the certificate shown to a server that asks for one, with its chain.',
      '/etc/understudy/client.crt',
    ),
    tlsKey: optionalFile("PEM file of that certificate's private key.", '/etc/understudy/client.key'),
    tlsNegotiation: optionalChoice(
      "As libpq's sslnegotiation: `direct` begins with TLS at once, for servers from 17 on.",
      TLS_NEGOTIATIONS,
      '`postgres`',
      'postgres',
    ),
    channelBinding: optionalChoice(
      "As libpq's channel_binding: whether SCRAM proofs are bound to the TLS connection they travel on.",
      CHANNEL_BINDINGS,
      '`prefer`',
      'prefer',
    ),
  });

export const migrationSection = z.strictObject({
  id: z
    .string({ error: 'expected lower-case letters, digits and _ only, at most 40' })
    .regex(/^[a-z0-9_]{1,40}$/, { error: 'expected lower-case letters, digits and _ only, at most 40' })
    .optional()
    .register(leaves, {
      expected: 'lower-case letters, digits and _ only, at most 40',
      description: 'Names the publication and slots: `understudy_<id>_fwd`, `understudy_<id>_rev`.',
      kind: 'string',
      defaultText: "from the source database's name",
      example: 'shop',
    }),
});

export const listenSection = z.strictObject({
  host: text('Address the applications connect to.', '127.0.0.1', 'a host name or address'),
  port: port('Port the applications connect to; 0 takes a free one.', 6432),
  reusePort: flag(
    'Let another process listen on the same port, for a hand-over (docs/runbook.md). Needs Node 22.12, 23.1 or newer.',
    false,
  ),
  socketDir: optionalText('Folder for a unix socket, `.s.PGSQL.<port>`, beside the port.', {
    expected: 'the path of a folder',
    example: '/var/run/understudy',
    defaultText: 'none',
  }),
  socketMode: octal("The socket's permissions, as chmod takes them.", '0777'),
  databases: nameMap(
    'Databases clients may ask for beside the one that is migrated: `asked` or `asked=name on the server`, separated by commas, or a mapping; `*` lets every name through. They stay on the source.',
    '"reports, old=archive"',
  ),
  tls: z
    .strictObject({
      cert: requiredText('PEM file of the certificate shown to applications.', {
        expected: 'the path of a readable file',
        example: '/etc/understudy/tls.crt',
      }),
      key: requiredText("PEM file of the certificate's private key.", {
        expected: 'the path of a readable file',
        example: '/etc/understudy/tls.key',
      }),
      clientCa: optionalFile(
        'PEM file of the authority that signs client certificates; clients are then asked for one.',
        '/etc/understudy/client-ca.pem',
      ),
      mode: choice(
        "What TCP clients must do: nothing, use TLS, show a valid certificate too, or one whose common name is the user's.",
        ['allow', 'require', 'verify-ca', 'verify-full'],
        'allow',
      ),
      minVersion: choice('Oldest TLS version clients may use.', ['TLSv1.2', 'TLSv1.3'], 'TLSv1.2'),
    })
    .optional(),
});

export const sourceSection = databaseSection('source', 'The database in use today');

export const destinationSection = databaseSection('destination', 'The database that takes over');

export const adminSection = z.strictObject({
  host: text('Address of the admin port.', '127.0.0.1', 'a host name or address'),
  port: port('Port for health checks, status and operations; 0 takes a free one.', 6433),
  token: z
    .string({ error: 'expected a text of at least 16 characters' })
    .min(16, { error: 'expected a text of at least 16 characters' })
    .optional()
    .register(leaves, {
      expected: 'a text of at least 16 characters',
      description: 'Bearer token for everything under /api. Required where `admin.host` is not loopback.',
      kind: 'string',
      secret: true,
      defaultText: 'none',
      example: '${UNDERSTUDY_ADMIN_TOKEN}',
    }),
});

export const authSection = z.strictObject({
  method: choice(
    'How applications prove who they are: by stored verifiers; by a password in the clear over TLS, checked here (`cleartext`) or by the server alone (`pass-through`); by a client certificate; or, from this machine, not at all.',
    CLIENT_AUTHENTICATIONS,
    'verifier',
  ),
  usersFile: optionalFile(
    'Verifiers in the form `"user" "SCRAM-SHA-256$…"`, one a line, where pg_authid can’t be read.',
    '/etc/understudy/users.txt',
  ),
});
