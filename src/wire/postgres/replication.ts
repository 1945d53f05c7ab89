/**
 * What travels inside CopyData while a replication stream runs.
 * https://www.postgresql.org/docs/current/protocol-replication.html
 */
import { UnderstudyError } from '../../core/errors.js';

/** Microseconds between 1970-01-01 and 2000-01-01, the epoch of the server's timestamps. */
const EPOCH_OFFSET_MICROS = 946_684_800_000_000n;

const XLOG_DATA = 0x77; // w
const KEEPALIVE = 0x6b; // k
const STANDBY_STATUS = 0x72; // r

/** type, start, end of log, time: the header in front of a change. */
export const XLOG_DATA_HEADER_BYTES = 1 + 8 + 8 + 8;
const KEEPALIVE_BYTES = 1 + 8 + 8 + 1;
const STANDBY_STATUS_BYTES = 1 + 8 + 8 + 8 + 8 + 1;

export type ReplicationFrame =
  /** `data` aliases the frame. */
  | { readonly kind: 'data'; readonly data: Buffer }
  | { readonly kind: 'keepalive'; readonly walEnd: bigint; readonly replyRequested: boolean };

/** Splits the header off one CopyData frame. Throws `protocol-violation` on anything malformed. */
export function readReplicationFrame(frame: Buffer): ReplicationFrame {
  const type = frame[0];
  if (type === XLOG_DATA && frame.length > XLOG_DATA_HEADER_BYTES) {
    return { kind: 'data', data: frame.subarray(XLOG_DATA_HEADER_BYTES) };
  }
  if (type === KEEPALIVE && frame.length === KEEPALIVE_BYTES) {
    return {
      kind: 'keepalive',
      walEnd: frame.readBigUInt64BE(1),
      replyRequested: frame[KEEPALIVE_BYTES - 1] !== 0,
    };
  }
  throw new UnderstudyError('protocol-violation', `replication: malformed frame of type ${type ?? 'none'}`);
}

/** Whether the frame from `start` to `end` carries a change; spares an object for each of the many that do. */
export function isXLogData(bytes: Buffer, start: number, end: number): boolean {
  return bytes[start] === XLOG_DATA && end - start > XLOG_DATA_HEADER_BYTES;
}

export interface StandbyStatus {
  /** Up to where the log arrived here. */
  readonly received: bigint;
  /** Up to where it is durable on the other side: the server may discard everything before. */
  readonly flushed: bigint;
  readonly at: Date;
}

export function writeStandbyStatus(status: StandbyStatus): Buffer {
  const frame = Buffer.alloc(STANDBY_STATUS_BYTES);
  frame[0] = STANDBY_STATUS;
  frame.writeBigUInt64BE(status.received, 1);
  frame.writeBigUInt64BE(status.flushed, 9);
  frame.writeBigUInt64BE(status.flushed, 17);
  frame.writeBigInt64BE(BigInt(status.at.getTime()) * 1000n - EPOCH_OFFSET_MICROS, 25);
  return frame;
}
