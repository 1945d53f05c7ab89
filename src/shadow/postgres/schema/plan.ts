/** What rebuilding a source's schema on the destination takes: statements in order, and what can't be carried. */
import type { Finding, TableName } from '../../../core/ports.js';

export const SCHEMA_STATEMENT_KINDS = [
  'schema',
  'extension',
  'collation',
  'type',
  'function',
  'aggregate',
  'operator',
  'cast',
  'text-search',
  'sequence',
  'table',
  'default',
  'check',
  'partition',
  'primary-key',
  'constraint',
  'index',
  'foreign-key',
  'validate',
  'statistics',
  'view',
  'materialized-view',
  'refresh',
  'rule',
  'trigger',
  'policy',
  'replica-identity',
  'comment',
  'owner',
  'grant',
  'setting',
] as const;
export type SchemaStatementKind = (typeof SCHEMA_STATEMENT_KINDS)[number];

export interface SchemaStatement {
  readonly kind: SchemaStatementKind;
  /** What it makes or changes, as in a fingerprint's key: `table public.orders`. For people and for resuming. */
  readonly object: string;
  /** Complete and schema-qualified; holds no value of the application's rows. */
  readonly sql: string;
  /** Roles the statement names. It is left out, and reported, where the destination lacks one of them. */
  readonly roles?: readonly string[];
  /** Takes back what the statement did, where that loses no row and asks for no decision. */
  readonly undo?: string;
  /** What it is made of, where a difference can be carried over in parts. */
  readonly shape?: StatementShape;
}

export interface TableColumnShape {
  /** Quoted. */
  readonly name: string;
  /** As CREATE TABLE and ADD COLUMN take it, without its default. */
  readonly sql: string;
  /** It has a default, or is an identity: a column added with one gives each row that is there a value. */
  readonly filled: boolean;
  /** The value that rows from before the column was added have, as text, where they all have the same. */
  readonly missing: string | null;
  /** Type alone, for a cast. */
  readonly type: string;
}

export type StatementShape =
  | {
      readonly of: 'table';
      /** Quoted and qualified. */
      readonly name: string;
      readonly isPartition: boolean;
      readonly columns: readonly TableColumnShape[];
      /** The statement without its columns. */
      readonly rest: string;
    }
  | { readonly of: 'enum'; readonly name: string; readonly labels: readonly string[] };

/**
 * A trigger or rule that fires even for the shadow's own writes (ENABLE ALWAYS, ENABLE REPLICA): it is built disabled.
 * The build records each in the destination's `understudy.deferred_trigger` with both statements, so that the
 * transaction that makes the destination lead can run `sql`, and the one that makes it follow again `disableSql`.
 */
export interface DeferredTrigger {
  readonly table: TableName;
  readonly name: string;
  readonly state: 'always' | 'replica';
  /** Gives it its state back. */
  readonly sql: string;
  readonly disableSql: string;
}

export interface SchemaPlan {
  /** Up to tables with the keys that upserts need; run in one transaction on an empty destination. */
  readonly beforeCopy: readonly SchemaStatement[];
  /** What is dearer before the rows are there, or must not act on them: run one by one, resumable. */
  readonly afterCopy: readonly SchemaStatement[];
  readonly deferredTriggers: readonly DeferredTrigger[];
  /** Roles that own, or are granted, something of the plan. */
  readonly roles: readonly string[];
  readonly unsupported: readonly Finding[];
}
