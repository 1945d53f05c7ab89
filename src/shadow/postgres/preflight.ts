import type pg from 'pg';
import type { Finding } from '../../core/ports.js';
import { UnderstudyError } from '../../core/errors.js';

export interface PreflightSettings {
  /** The migration's id: slots and publications named `understudy_<id>_…` are ours. */
  readonly migrationId: string;
  /** check: before anything is set up. cutover: what would stop a switch now is a blocker. */
  readonly purpose: 'check' | 'cutover';
  /** Connections the destination must have free beyond what the source's clients use now. */
  readonly connectionReserve?: number;
}

/** What is wrong, or worth knowing, with the source alone. */
export async function inspectSource(
  _source: pg.Client,
  _settings: PreflightSettings,
): Promise<readonly Finding[]> {
  throw new UnderstudyError('internal', 'not built');
}

/** What is wrong, or worth knowing, with the destination alone. */
export async function inspectDestination(
  _destination: pg.Client,
  _settings: PreflightSettings,
): Promise<readonly Finding[]> {
  throw new UnderstudyError('internal', 'not built');
}

/** Both sides, and what differs between them. Blockers first. */
export async function inspectPair(
  _source: pg.Client,
  _destination: pg.Client,
  _settings: PreflightSettings,
): Promise<readonly Finding[]> {
  throw new UnderstudyError('internal', 'not built');
}
