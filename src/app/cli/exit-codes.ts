import type { ErrorCode } from '../../core/errors.js';

/** docs/cli.md lists these; scripts rely on them. */
export const EXIT = {
  ok: 0,
  /** Refused, aborted or not equal: everything is as it was before. */
  refused: 1,
  /** The command line, the configuration, or something that can't be reached. */
  usage: 2,
  /** Not known which side leads, or an operation is in doubt: somebody must look. */
  attention: 3,
  /** A bug in Understudy. */
  internal: 70,
  interrupted: 130,
} as const;

export type ExitCode = (typeof EXIT)[keyof typeof EXIT];

const USAGE: readonly ErrorCode[] = [
  'config-invalid',
  'request-invalid',
  'admin-unreachable',
  'admin-unauthorized',
  'source-unreachable',
  'destination-unreachable',
  'port-in-use',
];
const ATTENTION: readonly ErrorCode[] = ['in-doubt', 'route-unknown', 'journal-conflict'];

export function exitCodeOf(code: ErrorCode): ExitCode {
  if (code === 'internal') return EXIT.internal;
  if (code === 'cancelled') return EXIT.interrupted;
  if (USAGE.includes(code)) return EXIT.usage;
  return ATTENTION.includes(code) ? EXIT.attention : EXIT.refused;
}
