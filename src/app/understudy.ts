/** Being wired. */
import type { Log } from '../core/log.js';
import type { ResolvedConfig } from './config.js';
import type { UnderstudyConfig } from './config/schema.js';
import type { StepPoint } from '../cutover/settings.js';
import type { OperationKind } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';

export interface UnderstudyHooks {
  readonly log?: Log;
  readonly observe?: (point: StepPoint, kind: OperationKind) => void | Promise<void>;
}
export interface Understudy {
  readonly version: string;
  readonly port: number;
  readonly adminUrl: string;
  stop(): Promise<void>;
}
export async function startUnderstudy(
  _config: ResolvedConfig | UnderstudyConfig,
  _hooks: UnderstudyHooks = {},
): Promise<Understudy> {
  throw new UnderstudyError('internal', 'not built yet');
}
