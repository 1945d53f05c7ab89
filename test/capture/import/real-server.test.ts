/** Logs that a real server wrote of a known workload, in every format it has: the counts must be exact. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type EmbeddedServer } from '../../../src/app/demo/embedded-server.js';
import { importLogs, type ImportReport } from '../../../src/capture/import/log-import.js';
import type { CapturedStatement } from '../../../src/core/capture-ports.js';
import { until, ownServer } from '../../support/servers.js';

const LAST = "SELECT 'the last one'";

/** Text, and the class of its error. */
type Ran = readonly [text: string, errorClass: string | null];

/** What each session ran, as the log must tell it. */
async function workload(url: string): Promise<readonly (readonly Ran[])[]> {
  const sessions: Ran[][] = [];
  const session = async (work: (run: Run) => Promise<void>): Promise<void> => {
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    const ran: Ran[] = [];
    sessions.push(ran);
    await work(async (text, values, name) => {
      const query: pg.QueryConfig = {
        text,
        ...(values === undefined ? {} : { values: [...values] }),
        ...(name === undefined ? {} : { name }),
      };
      try {
        await client.query(query);
        ran.push([text, null]);
      } catch (error) {
        ran.push([text, (error as pg.DatabaseError).code?.slice(0, 2) ?? '']);
      }
    });
    await client.end();
  };
  await session(async (run) => {
    await run('CREATE TABLE item (id int PRIMARY KEY, note text)');
    for (let id = 0; id < 20; id++)
      await run(`INSERT INTO item VALUES (${id}, 'duration: 5 ms  statement: "no"')`);
    await run("SELECT id,\n\t'a\n\nb' AS text -- a comment\n  FROM item\n\n WHERE id < 3");
    await run('BEGIN');
    await run('UPDATE item SET note = \'ö, "quoted"\' WHERE id = 1');
    await run('INSERT INTO item VALUES (1, NULL)');
    await run('SELECT 1');
    await run('ROLLBACK');
    await run('SELEC 1');
  });
  await session(async (run) => {
    for (let id = 0; id < 15; id++) {
      await run('SELECT note FROM item WHERE id = $1', [id]);
      await run('UPDATE item SET note = $2 WHERE id = $1', [id, "it's\na 'value'"], 'set note');
    }
    await run('SELECT 1 / $1::int', [0]);
    await run('INSERT INTO item VALUES ($1, $2)', [1, 'twice']);
    await run('SELECT * FROM missing WHERE id = $1', [1]);
  });
  await session(async () => undefined);
  await session((run) => run(LAST));
  return sessions;
}
type Run = (text: string, values?: readonly unknown[], name?: string) => Promise<void>;

interface Imported {
  readonly report: ImportReport;
  readonly statements: readonly CapturedStatement[];
}

async function imported(file: string): Promise<Imported> {
  const statements: CapturedStatement[] = [];
  const report = await importLogs(
    [file],
    {
      sinceMs: -Infinity,
      untilMs: Infinity,
      database: 'postgres',
      prefix: undefined,
      format: undefined,
      timezone: undefined,
      keys: false,
      showLines: true,
      stdin: process.stdin,
    },
    { add: (statement) => statements.push(statement) },
  );
  return { report, statements };
}

/** The statements of each session that had any, in order. */
function bySession(statements: readonly CapturedStatement[]): readonly (readonly Ran[])[] {
  const sessions = new Map<number | string, Ran[]>();
  for (const { sessionId, text, errorClass } of statements) {
    const ran = sessions.get(sessionId) ?? [];
    sessions.set(sessionId, ran);
    ran.push([text, errorClass]);
  }
  return [...sessions.values()];
}

interface Case {
  readonly version: 14 | 18;
  readonly name: string;
  readonly settings: Readonly<Record<string, string>>;
  readonly files: readonly string[];
  /** The prefix carries the SQLSTATE; csvlog and jsonlog always do. */
  readonly classes: boolean;
}

const COLLECTED = {
  logging_collector: 'on',
  log_directory: 'log',
  log_filename: 'pg.log',
  log_file_mode: '0644',
  log_connections: 'on',
  log_disconnections: 'on',
  log_timezone: 'Europe/Berlin',
};

const CASES: readonly Case[] = [
  {
    version: 18,
    name: '18 with log_min_duration_statement = 0',
    settings: {
      ...COLLECTED,
      log_destination: 'stderr,csvlog,jsonlog',
      log_min_duration_statement: '0',
      log_line_prefix: '%m [%p] %q%u@%d/%a ',
    },
    files: ['pg.log', 'pg.csv', 'pg.json'],
    classes: false,
  },
  {
    version: 14,
    name: '14 with log_statement = all and log_duration',
    settings: {
      ...COLLECTED,
      log_destination: 'stderr,csvlog',
      log_statement: 'all',
      log_duration: 'on',
      log_line_prefix: '%t|%c|%l|user=%u,db=%d,state=%e| ',
    },
    files: ['pg.log', 'pg.csv'],
    classes: true,
  },
];

for (const { version, name, settings, files, classes } of CASES) {
  describe(name, () => {
    let server: EmbeddedServer;
    let expected: readonly (readonly Ran[])[];
    beforeAll(async () => {
      server = await ownServer({ version, settings: { ...settings, fsync: 'off' } });
      expected = await workload(server.url('postgres'));
      await until(
        async () => {
          const logs = await Promise.all(files.map((file) => readFile(path(file), 'utf8').catch(() => '')));
          return logs.every((log) => log.includes('the last one') && log.split('disconnection').length > 4);
        },
        { what: 'the logs to be written' },
      );
    });
    afterAll(() => server[Symbol.asyncDispose]());

    const path = (file: string): string => join(server.folder, 'data', 'log', file);

    test.each(files)('%s: every statement once, in its session, with its error', async (file) => {
      const { report, statements } = await imported(path(file));
      expect(report.unreadable).toEqual({ lines: 0, reasons: {}, first: [] });
      const known = classes || !file.endsWith('.log');
      const wanted = expected
        .filter((ran) => ran.length > 0)
        .map((ran) => ran.map(([text, error]): Ran => [text, known || error === null ? error : '']));
      expect(bySession(statements)).toEqual(wanted);
      expect(report.counts).toMatchObject({
        statements: wanted.flat().length,
        failed: wanted.flat().filter(([, error]) => error !== null).length,
        connections: 4,
        disconnections: 4,
        sessions: 4,
        outOfOrder: 0,
        cut: 0,
      });
      const timed = statements.filter(({ errorClass }) => errorClass === null);
      expect(timed.every(({ durationMicros }) => durationMicros !== null && durationMicros > 0)).toBe(true);
      expect(Math.abs(report.counts.lastMs - Date.now())).toBeLessThan(600_000);
    });
  });
}
