/** The programmatic entry: what `understudy run` does, for programs and tests. */
export { startUnderstudy, type Understudy, type UnderstudyHooks } from './app/understudy.js';
export { loadConfig, resolveConfig, redact, type LoadOptions, type ResolvedConfig } from './app/config.js';
export type { UnderstudyConfig } from './app/config/schema.js';
export type { OperationLine, OperationOptions, StatusReport } from './admin/control.js';
export { UnderstudyError, type ErrorCode, type SerializedError } from './core/errors.js';
