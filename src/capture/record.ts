/**
 * How one finished statement lies in the ring: eight 64-bit floats (integers up to 2⁵³), then the text's bytes, then
 * those of the bound parameters.
 * Both ends are of one process and one version, so the layout carries none.
 */
export const SESSION_ID = 0;
export const DURATION_MICROS = 1;
export const ROWS = 2;
export const BYTES_TO_SERVER = 3;
export const BYTES_TO_CLIENT = 4;
/** {@link FAILED} and {@link CUT}, the transaction status from bit 8 on, the error's class from bit 16 on. */
export const FLAGS = 5;
/** Monotonic ms of the main thread. */
export const ENDED_AT = 6;
export const PARAMETER_BYTES = 7;
export const FIXED_BYTES = 8 * 8;

export const FAILED = 1;
/** The text is longer than what was kept. */
export const CUT = 2;
export const STATUS_SHIFT = 8;
export const ERROR_CLASS_SHIFT = 16;
