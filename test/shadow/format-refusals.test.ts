/** What a format can't have, and what `check` says of it. */
import { expect, test } from 'vitest';
import type { Format, Partitioning, TableFormat } from '../../src/core/format-ports.js';
import { conversionOf } from '../../src/shadow/format/conversion.js';
import { formsOf } from '../../src/shadow/format/forms.js';
import { inspectFormat } from '../../src/shadow/format/preflight.js';
import type { TableInfo } from '../../src/shadow/postgres/table.js';
import { databasePair } from '../support/servers.js';
import { sql } from './engine-harness.js';

test('a partitioning that can’t be undone is refused', async () => {
  await using pair = await databasePair();
  await sql(
    pair.onSource,
    `CREATE TABLE a (id int PRIMARY KEY, n int UNIQUE, v text); CREATE TABLE b (v text); CREATE TABLE p (id int PRIMARY KEY) PARTITION BY HASH (id)`,
  );
  const refused = async (
    table: string,
    partitioning: Partitioning,
    more: TableFormat = {},
  ): Promise<readonly string[]> => {
    const format: Format = { tables: { [`public.${table}`]: { ...more, partitioning } } };
    const findings = await inspectFormat(pair.onSource, { method: 'log', format });
    return findings.filter(({ severity }) => severity === 'blocker').map(({ message }) => message);
  };
  const hash: Partitioning = { by: 'hash', columns: ['id'], partitions: 2 };
  const expectOne = (messages: readonly string[], text: string): void =>
    expect(messages).toEqual(expect.arrayContaining([expect.stringContaining(text)]));
  expectOne(await refused('a', hash), 'across partitions');
  expectOne(await refused('a', { ...hash, columns: ['v'] }), 'not a column of its key');
  expectOne(await refused('b', { ...hash, columns: ['v'] }), 'no key');
  expectOne(await refused('p', hash), 'only a plain table');
  expectOne(await refused('a', hash, { name: 'other' }), 'keeps its name');
  expectOne(await refused('a', { by: 'range', columns: ['id'], partitions: { b: 'DEFAULT' } }), 'already');
  expectOne(
    await refused('a', { by: 'range', columns: ['id'], partitions: { x: 'IN (1)' } }),
    'is not IN (1)',
  );
  expectOne(await refused('a', { by: 'range', columns: ['id'], partitions: 2 }), 'only by hash');
  expectOne(await refused('a', { ...hash, columns: ['lost'] }), 'no column of it');
});

test('names that can’t be had are refused', () => {
  const table = (schema: string, name: string, parents?: string[]): TableInfo => ({
    schema,
    name,
    ...(parents === undefined ? {} : { parents }),
    kind: 'ordinary',
    columns: [
      {
        name: 'id',
        type: 'integer',
        typeKind: 'b',
        notNull: true,
        generated: false,
        identity: null,
        collatable: false,
      },
      {
        name: 'n',
        type: 'integer',
        typeKind: 'b',
        notNull: false,
        generated: false,
        identity: null,
        collatable: false,
      },
    ],
    key: ['id'],
    replicaIdentity: 'd',
    unlogged: false,
    rowsEstimated: 0,
    bytes: 0,
  });
  const tables = [table('public', 'a'), table('public', 'b'), table('public', 'c', ['public.a'])];
  const refused = (format: Format): readonly string[] =>
    formsOf(format, tables, true).findings.map(({ message }) => message);
  expect(refused({ schemas: { lost: 'x' } })).toHaveLength(1);
  expect(refused({ schemas: { public: 'x' } })).toEqual([]);
  expect(refused({ tables: { 'public.a': { name: 'b' } } })).toHaveLength(1);
  expect(refused({ tables: { 'public.a': { name: 'x' }, 'public.b': { name: 'x' } } })).toHaveLength(1);
  expect(refused({ tables: { 'public.a': { name: 'understudy.x' } } })).toHaveLength(1);
  expect(refused({ tables: { 'public.a': { columns: { n: 'm' } } } })).toHaveLength(1);
  expect(refused({ compatibility: 'none', tables: { 'public.a': { columns: { n: 'm' } } } })).toEqual([]);
  expect(refused({ tables: { 'public.a': { name: 'x', columns: { n: 'id' } } } })).toHaveLength(1);
  expect(refused({ tables: { 'public.c': { name: 'x', columns: { n: 'm' } } } })).toHaveLength(1);
  expect(refused({ tables: { 'public.c': { types: { n: { type: 'bigint' } } } } })).toHaveLength(1);
  expect(refused({ tables: { 'public.a': { name: 'x'.repeat(64) } } })).toHaveLength(1);
});

test('check names what the format asks for in vain, and what it changes', async () => {
  await using pair = await databasePair();
  await sql(
    pair.onSource,
    `CREATE TABLE a (id integer PRIMARY KEY, at timestamp, d json, padded char(3)); CREATE TABLE b (a integer REFERENCES a, t timestamptz)`,
  );
  const findings = await inspectFormat(pair.onSource, {
    method: 'poll',
    format: {
      tables: {
        'public.a': {
          types: {
            id: { type: 'bigint' },
            at: { type: 'timestamptz', zone: 'Etc/Nowhere' },
            gone: { type: 'text' },
            padded: { type: 'text' },
          },
        },
        'public.b': { types: { t: { type: 'date' } } },
        'public.lost': {},
      },
    },
  });
  expect(findings.map(({ severity, check, object }) => `${severity} ${check} ${object}`)).toEqual([
    'blocker format-refused public.a.gone',
    'blocker format-refused public.lost',
    'blocker format-refused public.b.t',
    'blocker format-refused shadow.format',
    'blocker format-refused public.a.at',
    'warning format-mapped public.a.id',
    'info format-mapped public.a.at',
    'warning format-time-zone public.a.at',
    'info format-mapped public.a.padded',
    'warning format-blanks public.a.padded',
    'warning format-foreign-key constraint b_a_fkey on public.b',
  ]);
});

test.each([
  ['character varying(10)', 'varchar(5)', 'no room'],
  ['bigint', 'int', 'no room'],
  ['timestamp with time zone', 'date', 'can’t be undone'],
  ['text', 'char(5)', 'pads'],
  ['timestamp without time zone', 'timestamptz', 'which zone'],
  ['timestamp(3) without time zone', 'timestamptz(2)', 'precision'],
  ['numeric(12,2)', 'bigint', 'not a mapping'],
  ['integer[]', 'bigint', 'array'],
  ['text', 'varchar(10)', 'no room'],
  ['jsonb', 'json', 'can’t be undone'],
])('%s to %s is refused: %s', (from, to, reason) => {
  expect(conversionOf(from, { type: to })).toMatchObject({
    kind: 'refused',
    reason: expect.stringContaining(reason) as string,
  });
});

test('a zone with summer time wants consent, one without does not', () => {
  const from = 'timestamp without time zone';
  const berlin = { type: 'timestamptz', zone: 'Europe/Berlin' };
  expect(conversionOf(from, berlin)).toMatchObject({ kind: 'refused' });
  expect(conversionOf(from, { ...berlin, repeatedHour: 'accept' })).toMatchObject({ kind: 'converted' });
  expect(conversionOf(from, { type: 'timestamptz', zone: 'Etc/GMT+5' })).toMatchObject({ kind: 'converted' });
  expect(conversionOf('integer', { type: 'int4' })).toEqual({ kind: 'same' });
});
