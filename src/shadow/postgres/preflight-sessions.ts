import type pg from 'pg';
import { UnderstudyError } from '../../core/errors.js';

export interface SessionHints {
  /** Dotted settings, lower-case, that function bodies, policies, views, defaults or stored settings name. */
  readonly dottedSettings: string[];
  /** Functions, as `schema.name(arguments)`, whose bodies may leave state in a session. */
  readonly statefulFunctions: string[];
}

/** Where sessions of this database may hold state that `pg_settings` does not show. */
export async function readSessionHints(_client: pg.Client): Promise<SessionHints> {
  throw new UnderstudyError('internal', 'not built');
}
