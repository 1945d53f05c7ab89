/**
 * Nothing that a person keeps to themselves comes out of the sidecar: not in its log at its most talkative, not in its
 * metrics, not in its status. A sidecar in a process of its own meets values, passwords and mistakes of every kind that
 * bear a mark, and the mark is looked for.
 */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { expect, test } from 'vitest';
import { UnderstudyProcess } from '../../src/app/demo/understudy-process.js';
import { POOL_MODES } from '../../src/proxy/pool/pool-settings.js';
import type { DatabaseEndpoint } from '../../src/core/ports.js';
import { databasePair, until } from '../support/servers.js';

const PROGRAM = fileURLToPath(new URL('../../dist/app/main.js', import.meta.url));
const MARK = 'zebra7391';

function urlOf(endpoint: DatabaseEndpoint, port = endpoint.port): string {
  return `postgres://${endpoint.user}:${endpoint.password ?? ''}@127.0.0.1:${port}/${endpoint.database}`;
}

async function text(running: UnderstudyProcess, path: string): Promise<string> {
  const response = await fetch(`http://127.0.0.1:${running.adminPort}${path}`);
  expect(response.ok).toBe(true);
  return await response.text();
}

async function failing(work: Promise<unknown>): Promise<string> {
  return await work.then(
    () => 'no error',
    (error: { readonly code?: string }) => error.code ?? 'no code',
  );
}

async function connected(url: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: url });
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

test.each(POOL_MODES)(
  'no value, password or text of a statement comes out of a sidecar in %s mode',
  async (poolMode) => {
    const folder = await mkdtemp(join(tmpdir(), 'understudy-secrecy-'));
    await using pair = await databasePair();
    const role = `secret_${pair.source.database}`;
    try {
      await pair.onSource.query(`
        CREATE TABLE public.secret (id int PRIMARY KEY, value text UNIQUE CHECK (value <> 'no-${MARK}'));
        CREATE ROLE ${role} LOGIN PASSWORD 'password-${MARK}';
        GRANT ALL ON public.secret TO ${role};`);
      await using running = await UnderstudyProcess.start({
        folder,
        sourceUrl: urlOf(pair.source),
        destinationUrl: urlOf(pair.destination),
        config: {
          shadow: { enabled: false },
          log: { level: 'debug' },
          proxy: { poolMode },
          limits: { queryTimeoutMs: 300, frameBytesMax: 65_536 },
        },
        program: PROGRAM,
      });
      const application = { ...pair.source, user: role, password: `password-${MARK}` };
      const url = urlOf(application, running.port);
      const client = await connected(url);
      await client.query(`INSERT INTO public.secret VALUES (1, 'text-${MARK}')`);
      await client.query('INSERT INTO public.secret VALUES ($1, $2)', [2, `parameter-${MARK}`]);
      await client.query({ name: `name-${MARK}`, text: 'SELECT $1::text', values: [`prepared-${MARK}`] });
      await client.query(`SET application.secret = 'setting-${MARK}'`);
      const codes = [
        await failing(client.query(`INSERT INTO public.secret VALUES (1, 'again-${MARK}')`)),
        await failing(client.query('INSERT INTO public.secret VALUES (3, $1)', [`no-${MARK}`])),
        await failing(client.query('SELECT $1::int', [`number-${MARK}`])),
        await failing(client.query(`SELECT 'unfinished-${MARK}`)),
        await failing(client.query('SELECT pg_sleep(60), $1::text', [`slow-${MARK}`])),
        await failing(connected(urlOf({ ...application, password: `wrong-${MARK}` }, running.port))),
        await failing(connected(url.replace(/[^/]+$/, `database-${MARK.length}`))),
      ];
      expect(codes).toEqual(['23505', '23514', '22P02', '42601', '57014', '28P01', '3D000']);
      // Longer than any frame may be: the session is closed for it, and logged.
      await failing(client.query('SELECT $1::text', [MARK.repeat(20_000)]));
      await until(async () => (await readFile(running.logFile, 'utf8')).includes('protocol violation'));

      const outputs = {
        log: await readFile(running.logFile, 'utf8'),
        metrics: await text(running, '/metrics'),
        ready: await text(running, '/readyz'),
      };
      // Something did come out: the refused login, and the errors as counts.
      expect(outputs.log).toContain('a client was refused');
      expect(outputs.metrics).toContain('understudy_client_errors_total{class="23"} 2');
      for (const [where, output] of Object.entries(outputs))
        expect([where, output.includes(MARK)]).toEqual([where, false]);
      expect(await text(running, '/api/status')).not.toContain(MARK);
      await client.end().catch(() => undefined);
    } finally {
      await pair.onSource.query(`DROP OWNED BY ${role}`).catch(() => undefined);
      await pair.onSource.query(`DROP ROLE IF EXISTS ${role}`).catch(() => undefined);
      await rm(folder, { recursive: true, force: true });
    }
  },
);
