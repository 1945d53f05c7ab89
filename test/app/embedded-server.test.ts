import { existsSync, readdirSync } from 'node:fs';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { EmbeddedServer, SUPERUSER, SUPERUSER_PASSWORD } from '../../src/app/demo/embedded-server.js';
import { until } from '../support/servers.js';
import { FAST_SETTINGS } from '../support/global-setup.js';
import { connectControl } from '../../src/core/postgres.js';

test('a server survives kill -9 with its data and leaves no folder behind', async () => {
  const server = await EmbeddedServer.create({ version: 14, settings: FAST_SETTINGS });
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

test.each(['initdb', 'start'])(
  'giving up during %s leaves no process and no folder behind',
  async (phase) => {
    const parent = await mkdtemp(join(tmpdir(), 'understudy-give-up-'));
    await chmod(parent, 0o711);
    const controller = new AbortController();
    const creating = EmbeddedServer.create({
      version: 18,
      settings: FAST_SETTINGS,
      parent,
      signal: controller.signal,
    });
    const outcome = expect(creating).rejects.toThrow('enough');
    const sign = phase === 'initdb' ? 'password' : 'data/postmaster.pid';
    await until(() => readdirSync(parent).some((folder) => existsSync(join(parent, folder, sign))));
    controller.abort(new Error('enough'));
    await outcome;
    expect(readdirSync(parent)).toEqual([]);
    await rm(parent, { recursive: true });
  },
);
