/**
 * How one finished statement lies in the ring: six 64-bit floats (integers up to 2⁵³), then the text's bytes.
 * Both ends are of one process and one version, so the layout carries none.
 */
export const SESSION_ID = 0;
export const DURATION_MICROS = 1;
export const ROWS = 2;
export const BYTES_TO_SERVER = 3;
export const BYTES_TO_CLIENT = 4;
/** {@link FAILED} and {@link CUT}, and the transaction status from bit 8 on. */
export const FLAGS = 5;
export const FIXED_BYTES = 6 * 8;

export const FAILED = 1;
/** The text is longer than what was kept. */
export const CUT = 2;
export const STATUS_SHIFT = 8;
