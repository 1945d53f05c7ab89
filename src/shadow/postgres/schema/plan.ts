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
}

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
