import type pg from 'pg';
import type { SchemaPlan } from './plan.js';
import { UnderstudyError } from '../../../core/errors.js';

export interface ReadSchemaOptions {
  /** `server_version_num` of the server the plan will run on; the source's own where absent. */
  readonly destinationVersionNum?: number;
}

/** Reads the whole user schema of the database from the catalogs, with the server's own deparsers. */
export async function readSchema(_client: pg.Client, _options: ReadSchemaOptions = {}): Promise<SchemaPlan> {
  throw new UnderstudyError('internal', 'not built');
}
