/** Two copies of one schema on the shared servers, and a verifier over them. */
import { randomBytes } from 'node:crypto';
import type pg from 'pg';
import { readTables } from '../../src/shadow/postgres/tables.js';
import type { TableInfo } from '../../src/shadow/postgres/table.js';
import {
  verifyTables,
  type VerifyTablesOptions,
  type VerifyTablesResult,
} from '../../src/shadow/postgres/verify.js';
import { databasePair, type DatabasePair } from '../support/servers.js';

export interface TwoCopies {
  readonly pair: DatabasePair;
  /** Name of the schema that only this test uses. `@` stands for it in every statement. */
  readonly schema: string;
  onSource(sql: string): Promise<pg.QueryResult>;
  onDestination(sql: string): Promise<pg.QueryResult>;
  onBoth(sql: string): Promise<void>;
  tables(): Promise<readonly TableInfo[]>;
  table(name: string): Promise<TableInfo>;
  verify(options?: Partial<VerifyTablesOptions>): Promise<VerifyTablesResult>;
}

/** A fresh schema of the same name on both sides of `pair`. */
export async function twoCopies(pair: DatabasePair): Promise<TwoCopies> {
  const schema = `v_${randomBytes(4).toString('hex')}`;
  const fill = (sql: string): string => sql.replaceAll('@', schema);
  const copies: TwoCopies = {
    pair,
    schema,
    onSource: (sql) => pair.onSource.query(fill(sql)),
    onDestination: (sql) => pair.onDestination.query(fill(sql)),
    async onBoth(sql) {
      await copies.onSource(sql);
      await copies.onDestination(sql);
    },
    async tables() {
      return (await readTables(pair.onSource)).filter((table) => table.schema === schema);
    },
    async table(name) {
      const found = (await copies.tables()).find((table) => table.name === name);
      if (found === undefined) throw new Error(`no table ${name}`);
      return found;
    },
    async verify(options = {}) {
      return await verifyTables(
        { authoritative: pair.onSource, follower: pair.onDestination },
        await copies.tables(),
        {
          settle: () => Promise.resolve('0/1'),
          signal: new AbortController().signal,
          ...options,
        },
      );
    },
  };
  await copies.onBoth('CREATE SCHEMA @');
  return copies;
}

export async function freshCopies(): Promise<TwoCopies & AsyncDisposable> {
  const pair = await databasePair();
  const copies = await twoCopies(pair);
  return { ...copies, [Symbol.asyncDispose]: () => pair[Symbol.asyncDispose]() };
}
