import type pg from 'pg';
import type { Finding } from '../../../core/ports.js';
import { UnderstudyError } from '../../../core/errors.js';

export interface RoleMembership {
  readonly role: string;
  readonly admin: boolean;
}

export interface RoleInfo {
  readonly name: string;
  readonly superuser: boolean;
  readonly inherit: boolean;
  readonly createRole: boolean;
  readonly createDatabase: boolean;
  readonly login: boolean;
  readonly replication: boolean;
  readonly bypassRowSecurity: boolean;
  /** -1: unlimited. */
  readonly connectionLimit: number;
  readonly validUntil: string | null;
  /** As stored by the server; null where there is none or it can't be read. A secret: never logged. */
  readonly verifier: string | null;
  readonly memberOf: readonly RoleMembership[];
  /** `name=value`, in every database. */
  readonly settings: readonly string[];
  /** `name=value`, in this database alone. */
  readonly databaseSettings: readonly string[];
  /** Owns, or is granted, something in this database. */
  readonly used: boolean;
}

export interface RoleSet {
  readonly roles: readonly RoleInfo[];
  /** Whether pg_authid could be read: false means every verifier is null for that reason. */
  readonly verifiersReadable: boolean;
}

export interface RoleReport {
  readonly created: readonly string[];
  readonly findings: readonly Finding[];
}

/** Roles that log in, own or are granted something in this database, and the roles those belong to. */
export async function readRoles(_client: pg.Client): Promise<RoleSet> {
  throw new UnderstudyError('internal', 'not built');
}

/** Creates the roles missing on the destination. Existing ones are never altered: what differs is a finding. */
export async function copyRoles(_source: pg.Client, _destination: pg.Client): Promise<RoleReport> {
  throw new UnderstudyError('internal', 'not built');
}
