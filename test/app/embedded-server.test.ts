import { existsSync } from 'node:fs';
import { expect, test } from 'vitest';
import { EmbeddedServer, SUPERUSER, SUPERUSER_PASSWORD } from '../../src/app/demo/embedded-server.js';
import { connectControl } from '../../src/core/postgres.js';

test('a server survives kill -9 with its data and leaves no folder behind', async () => {
  const server = await EmbeddedServer.create({ version: 14 });
  const endpoint = {
    host: server.host,
    port: server.port,
    database: 'postgres',
    user: SUPERUSER,
    password: SUPERUSER_PASSWORD,
    tls: 'disable',
  } as const;
  let client = await connectControl('source', endpoint, { purpose: 'test' });
  await client.query('CREATE TABLE public.kept AS SELECT 42 AS answer');
  await server.stop('SIGKILL');
  await client.end().catch(() => undefined);
  await server.start();
  client = await connectControl('source', endpoint, { purpose: 'test' });
  const { rows } = await client.query<{ answer: string }>('SELECT answer FROM public.kept');
  expect(rows).toEqual([{ answer: '42' }]);
  await client.end();
  await server[Symbol.asyncDispose]();
  expect(existsSync(server.folder)).toBe(false);
});
