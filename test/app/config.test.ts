import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadConfig, migrationIdOf, redact, resolveConfig, type LoadOptions } from '../../src/app/config.js';
import { UnderstudyError } from '../../src/core/errors.js';

const SOURCE = 'postgres://app:s3cret@127.0.0.1:5432/shop';
const DESTINATION = 'postgres://app:s3cret@127.0.0.1:5433/shop';
const ENDPOINTS = `source:\n  url: ${SOURCE}\ndestination:\n  url: ${DESTINATION}\n`;

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'understudy-config-'));
});
afterAll(() => rm(folder, { recursive: true }));

async function load(yaml: string, options: LoadOptions = {}) {
  await writeFile(join(folder, 'understudy.yaml'), yaml);
  return loadConfig({ environment: {}, cwd: folder, ...options });
}

/** The lines of the refusal. */
async function refusal(yaml: string, options: LoadOptions = {}): Promise<readonly string[]> {
  try {
    await load(yaml, options);
  } catch (error) {
    if (!(error instanceof UnderstudyError)) throw error;
    expect(error.code).toBe('config-invalid');
    expect(JSON.stringify(error.toJSON())).not.toContain('s3cret');
    return error.message.split('\n');
  }
  throw new Error('the configuration was accepted');
}

test('two URLs are enough', async () => {
  const config = await load(ENDPOINTS);
  expect(config.source).toEqual({
    host: '127.0.0.1',
    port: 5432,
    database: 'shop',
    user: 'app',
    password: 's3cret',
    tls: 'disable',
  });
  expect(config.listen).toEqual({
    host: '127.0.0.1',
    port: 6432,
    reusePort: false,
    socketMode: 0o777,
    databases: {},
  });
  expect(config.admin).toEqual({ host: '127.0.0.1', port: 6433 });
  expect(config.migration.id).toBe('shop');
});

test('a bad value is named with its file, line, column and key', async () => {
  const lines = await refusal(`${ENDPOINTS}cutover:\n  drainTimeoutMs: fast\n`);
  expect(lines).toEqual([
    'understudy.yaml:6:19 cutover.drainTimeoutMs: expected a whole number of milliseconds from 1 to 86400000, got "fast"',
  ]);
});

test('all problems are found at once, unknown keys with what was probably meant', async () => {
  const lines = await refusal(
    `source:\n  url: ${SOURCE}\n  pasword: s3cret\ncutofer: {}\nlisten:\n  port: 70000\nlog:\n  level: loud\n`,
  );
  expect(lines.toSorted()).toEqual(
    [
      'understudy.yaml:3:3 source.pasword: unknown key; did you mean password?',
      'understudy.yaml:4:1 cutofer: unknown key; did you mean cutover?',
      'understudy.yaml:6:9 listen.port: expected a whole number from 0 to 65535, got 70000',
      'understudy.yaml:8:10 log.level: expected one of debug, info, warn, error, silent, got "loud"',
      'destination.url: missing: expected a URL such as postgres://user:password@host:5432/database; it is not in understudy.yaml and UNDERSTUDY_DESTINATION_URL is not set',
    ].sort(),
  );
});

test('a section that is not a section is refused, an empty one takes its defaults', async () => {
  expect(await refusal(`${ENDPOINTS}listen: 6432\n`)).toEqual([
    'understudy.yaml:5:9 listen: expected keys below it, such as host, port, reusePort, socketDir, socketMode, databases, tls',
  ]);
  expect((await load(`${ENDPOINTS}listen:\n`)).listen.port).toBe(6432);
});

test('invalid YAML is named by line without quoting the line', async () => {
  const lines = await refusal(`source:\n  url: "${SOURCE}\n`);
  expect(lines[0]).toMatch(/^understudy\.yaml:\d+:\d+: not valid YAML: /);
});

test('the same key twice is refused', async () => {
  const lines = await refusal(`${ENDPOINTS}log:\n  level: info\n  level: warn\n`);
  expect(lines[0]).toMatch(/^understudy\.yaml:7:\d+: not valid YAML: .*unique/i);
});

test('variables are substituted, with fallbacks, and a missing one is named', async () => {
  const yaml = `source:\n  url: postgres://app:\${PW}@127.0.0.1/shop\ndestination:\n  url: ${DESTINATION}\nlisten:\n  port: \${PORT:-7000}\n`;
  const config = await load(yaml, { environment: { PW: 'from%20env' } });
  expect(config.source.password).toBe('from env');
  expect(config.listen.port).toBe(7000);
  expect((await load(yaml, { environment: { PW: 'x', PORT: '7001' } })).listen.port).toBe(7001);
  expect(await refusal(yaml)).toEqual([
    'understudy.yaml:2:8 source.url: the environment variable PW is not set',
  ]);
});

test('environment beats the file, flags beat the environment, and problems name the layer', async () => {
  const yaml = `${ENDPOINTS}listen:\n  port: 1000\n`;
  const environment = { UNDERSTUDY_LISTEN_PORT: '2000', UNDERSTUDY_CUTOVER_DRAIN_TIMEOUT_MS: '77' };
  const config = await load(yaml, { environment });
  expect(config.listen.port).toBe(2000);
  expect(config.cutover.drainTimeoutMs).toBe(77);
  expect((await load(yaml, { environment, assignments: ['listen.port=3000'] })).listen.port).toBe(3000);
  expect(await refusal(yaml, { environment: { UNDERSTUDY_LISTEN_PORT: 'x' } })).toEqual([
    'UNDERSTUDY_LISTEN_PORT listen.port: expected a whole number from 0 to 65535, got "x"',
  ]);
  expect(await refusal(yaml, { assignments: ['listen.prot=3000'] })).toEqual([
    '--set: unknown key "listen.prot"; did you mean listen.port?',
  ]);
});

test('a misspelt variable is refused, a cluster’s own service variables are not', async () => {
  expect(await refusal(ENDPOINTS, { environment: { UNDERSTUDY_LISTEN_PROT: '1' } })).toEqual([
    'UNDERSTUDY_LISTEN_PROT: no such setting; did you mean UNDERSTUDY_LISTEN_PORT?',
  ]);
  await load(ENDPOINTS, {
    environment: {
      UNDERSTUDY_SERVICE_HOST: '10.0.0.1',
      UNDERSTUDY_PORT: 'tcp://10.0.0.1:6432',
      UNDERSTUDY_PORT_6432_TCP_ADDR: '10.0.0.1',
    },
  });
});

test('no file at all: the environment alone is enough', () => {
  const config = loadConfig({
    cwd: tmpdir(),
    environment: { UNDERSTUDY_SOURCE_URL: SOURCE, UNDERSTUDY_DESTINATION_URL: DESTINATION },
  });
  expect(config.destination.port).toBe(5433);
});

test('a file that was named and does not exist is an error', async () => {
  const lines = await refusal(ENDPOINTS, { file: 'other.yaml' });
  expect(lines[0]).toContain('other.yaml');
});

test.each([
  ['mysql://app@h/db', 'begins with postgres://'],
  ['postgres://app:p@ss/word@h/db', 'percent-encoded'],
  ['postgres://app:s3cret@h', 'names no database'],
  ['postgres://h/db', 'names no user'],
  ['postgres://app@h/db?sslmode=maybe', 'sslmode in the URL must be one of'],
  ['postgres://app@h/db?conect_timeout=3', 'is not supported'],
])('the URL %s is refused', async (url, reason) => {
  const lines = await refusal(`source:\n  url: "${url}"\ndestination:\n  url: ${DESTINATION}\n`);
  expect(lines).toHaveLength(1);
  expect(lines[0]).toMatch(/^understudy\.yaml:2:8 source\.url: /);
  expect(lines[0]).toContain(reason);
});

test('a URL’s parts are decoded, IPv6 unwrapped, TLS on by default away from loopback', () => {
  const config = resolveConfig({
    source: { url: 'postgresql://a%40b:p%2Fw@[2001:db8::7]:6000/my%20db' },
    destination: { url: 'postgres://app@db.example.com/shop?sslmode=require', password: 'p@:/%' },
  });
  expect(config.source).toEqual({
    host: '2001:db8::7',
    port: 6000,
    database: 'my db',
    user: 'a@b',
    password: 'p/w',
    tls: 'verify-full',
  });
  expect(config.destination).toMatchObject({ port: 5432, password: 'p@:/%', tls: 'require' });
});

test('a password can come from a file beside the configuration', async () => {
  await writeFile(join(folder, 'pw'), 'from-file\n');
  const yaml = `source:\n  url: postgres://app@127.0.0.1/a\n  passwordFile: pw\ndestination:\n  url: ${DESTINATION}\n`;
  expect((await load(yaml)).source.password).toBe('from-file');
  await rm(join(folder, 'pw'));
  const lines = await refusal(yaml);
  expect(lines[0]).toMatch(/^understudy\.yaml:3:17 source\.passwordFile: can’t read .*ENOENT/);
});

test('source and destination must differ', async () => {
  const lines = await refusal(`source:\n  url: ${SOURCE}\ndestination:\n  url: ${SOURCE}\n`);
  expect(lines[0]).toContain('the same database');
});

test('ports others can reach are not left open to everyone', async () => {
  expect((await refusal(`${ENDPOINTS}admin:\n  host: 0.0.0.0\n`))[0]).toContain('a token is required');
  await load(`${ENDPOINTS}admin:\n  host: 0.0.0.0\n  token: 0123456789abcdef\n`);
  expect((await refusal(`${ENDPOINTS}listen:\n  host: 0.0.0.0\nauth:\n  method: trust\n`))[0]).toContain(
    'understudy.yaml:8:11 auth.method: trust on listen.host 0.0.0.0',
  );
  expect((await refusal(`${ENDPOINTS}listen:\n  host: 0.0.0.0\nauth:\n  method: cleartext\n`))[0]).toContain(
    'needs listen.tls',
  );
});

test('secrets are not printed', async () => {
  const config = await load(`${ENDPOINTS}admin:\n  token: s3cret-s3cret-s3cret\n`);
  expect(JSON.stringify(redact(config))).not.toContain('s3cret');
  expect(JSON.stringify(redact(config))).toContain('"user":"app"');
});

test('the migration’s id is made from the database’s name', () => {
  expect(migrationIdOf('Web-Shop 2')).toBe('web_shop_2');
  expect(migrationIdOf('x'.repeat(63))).toHaveLength(40);
});

test('a folder in place of a host is where the server’s unix socket is, written as libpq takes it', () => {
  for (const url of [
    'postgres://app@%2Fvar%2Frun%2Fpostgresql:5433/shop',
    'postgres://app@:5433/shop?host=/var/run/postgresql',
    'postgresql://app:pw@:5433/shop?host=%2Fvar%2Frun%2Fpostgresql',
    'postgresql://app:pw@/shop?host=/var/run/postgresql&port=5433',
  ]) {
    const { source } = resolveConfig({ source: { url }, destination: { url: DESTINATION } });
    expect(source).toMatchObject({ host: '/var/run/postgresql', port: 5433, user: 'app', tls: 'disable' });
  }
  const plain = resolveConfig({
    source: { url: 'postgres://app@/shop?host=/tmp' },
    destination: { url: DESTINATION },
  });
  expect(plain.source).toMatchObject({ host: '/tmp', port: 5432, database: 'shop' });
});

test('TLS towards servers is read from the URL by libpq’s names, and keys beside it win', async () => {
  await writeFile(join(folder, 'a.pem'), 'A');
  const url =
    'postgres://app@db.example.com/shop?sslmode=verify-ca&sslrootcert=a.pem&sslcert=a.pem&sslkey=a.pem';
  const config = await load(
    `source:\n  url: ${url}&sslnegotiation=direct&channel_binding=require\n  channelBinding: disable\ndestination:\n  url: ${DESTINATION}\n`,
  );
  expect(config.source).toMatchObject({
    tls: 'verify-ca',
    tlsCa: 'A',
    tlsCert: 'A',
    tlsKey: 'A',
    tlsNegotiation: 'direct',
    channelBinding: 'disable',
  });
  expect(JSON.stringify(redact(config))).not.toContain('"A"');
});

test('settings of TLS that contradict each other are refused', async () => {
  await writeFile(join(folder, 'a.pem'), 'A');
  const lines = await refusal(
    [
      `source:\n  url: ${SOURCE}\n  tls: prefer\n  tlsNegotiation: direct\n  tlsCert: a.pem`,
      `destination:\n  url: ${DESTINATION}`,
      'auth:\n  method: certificate',
      'listen:\n  tls: { cert: a.pem, key: a.pem, mode: verify-full }\n',
    ].join('\n'),
  );
  expect(lines.map((line) => /[a-z]+\.[a-zA-Z.]+(?=: )/.exec(line)?.[0] ?? '').sort()).toEqual([
    'auth.method',
    'listen.tls.mode',
    'source.tlsCert',
    'source.tlsNegotiation',
  ]);
});

test('a password in the clear is only taken off loopback where there is TLS', async () => {
  for (const method of ['cleartext', 'pass-through']) {
    const lines = await refusal(`${ENDPOINTS}listen:\n  host: 0.0.0.0\nauth:\n  method: ${method}\n`);
    expect(lines[0]).toContain('listen.tls');
  }
});

test('names of the migrated database may have pool modes of their own', async () => {
  const listen = 'listen:\n  databases: "shop_pooled = shop, reports"\n';
  const read = (modes: string) => `${ENDPOINTS}${listen}proxy:\n  poolModes: ${modes}\n`;
  const { proxy } = await load(read('"shop=session, shop_pooled=pipelined"'));
  expect(proxy.poolModes).toEqual({ shop: 'session', shop_pooled: 'pipelined' });
  expect((await load(read('{ shop_pooled: transaction }'))).proxy.poolModes).toEqual({
    shop_pooled: 'transaction',
  });
  for (const wrong of ['"shop=statement"', '"shop"', '"reports=transaction"', '{ unknown: session }']) {
    expect(await refusal(read(wrong)), wrong).toHaveLength(1);
  }
});

test('databases are a list or a mapping, and a socket has permissions', async () => {
  const read = async (listen: string) => (await load(`${ENDPOINTS}listen:\n  ${listen}\n`)).listen;
  expect((await read('databases: "a, b = c, *"')).databases).toEqual({ a: 'a', b: 'c', '*': '*' });
  expect((await read('databases: { a: x, b: b }')).databases).toEqual({ a: 'x', b: 'b' });
  expect(await read('{ socketDir: run, socketMode: "0700" }')).toMatchObject({
    socketDir: join(folder, 'run'),
    socketMode: 0o700,
  });
  expect((await read('socketMode: 770')).socketMode).toBe(0o770);
  for (const wrong of [
    'databases: "a=, b"',
    'databases: { "*": a }',
    'socketMode: "0999"',
    'socketMode: rwx',
  ]) {
    expect(await refusal(`${ENDPOINTS}listen:\n  ${wrong}\n`), wrong).toHaveLength(1);
  }
});

test('subsets are names with tables, and what is not built of them is refused', async () => {
  const subset = (text: string): string => `${ENDPOINTS}subsets:\n  orders:\n    ${text}\n`;
  expect((await load(subset('tables: [public.orders, public.line]'))).subsets).toEqual([
    {
      subset: 'orders',
      tables: ['public.orders', 'public.line'],
      foreignKeys: 'together',
      crossing: 'refuse',
    },
  ]);
  expect((await load(subset('tables: [public.orders]\n    crossing: follow'))).subsets[0]?.crossing).toBe(
    'follow',
  );
  expect((await load(ENDPOINTS)).subsets).toEqual([]);
  expect(await refusal(subset('tables: [public.orders]\n    crossing: link'))).toEqual([
    'understudy.yaml:8:15 subsets.orders.crossing: link is not built; expected refuse or follow',
  ]);
  expect(await refusal(subset('tables: orders'))).toEqual([
    expect.stringContaining('expected a list of tables as schema.table'),
  ]);
  expect(await refusal(subset('tables: [public.a]\n  rest:\n    tables: [public.a]'))).toEqual([
    expect.stringContaining('"rest" is reserved'),
    expect.stringContaining('public.a is in subset orders already'),
  ]);
});
