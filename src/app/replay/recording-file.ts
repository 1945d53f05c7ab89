/**
 * Reads a recording: its records in order, and beforehand, in one pass, what it holds and where sessions must be cut.
 *
 * A block that is torn or damaged ends the reading: what was recorded after it can't be placed. A session whose end
 * is not in the recording (torn off, dropped under load, still open when it ended) is cut at the last moment at which
 * it had sent nothing unanswered, outside a transaction: so a replay never sends half a transaction.
 */
import { open, type FileHandle } from 'node:fs/promises';
import { UnderstudyError } from '../../core/errors.js';
import { FRAME_HEADER_BYTES, FRONTEND } from '../../wire/postgres/messages.js';
import {
  BLOCK_HEAD_BYTES,
  FILE_HEAD_BYTES,
  blockBytes,
  blockIntact,
  decodeBlock,
  decodeFileHead,
  fileHeadBytes,
  type RecordingHeader,
  type RecordingRecord,
} from '../../wire/recording.js';

const STATUS_IDLE = 0x49;

export class RecordingFile implements AsyncDisposable {
  readonly header: RecordingHeader;
  readonly bytes: number;
  readonly #handle: FileHandle;
  readonly #firstBlockAt: number;
  /** Bytes at the end that are no whole block; known once {@link records} came to its end. */
  tornBytes = 0;

  private constructor(handle: FileHandle, header: RecordingHeader, firstBlockAt: number, bytes: number) {
    this.#handle = handle;
    this.header = header;
    this.#firstBlockAt = firstBlockAt;
    this.bytes = bytes;
  }

  /** Throws `recording-unreadable`. */
  static async open(path: string): Promise<RecordingFile> {
    let handle: FileHandle;
    try {
      handle = await open(path, 'r');
    } catch (error) {
      const code = error instanceof Error && 'code' in error ? String(error.code) : String(error);
      throw new UnderstudyError('recording-unreadable', `${path} can’t be opened: ${code}`, { cause: error });
    }
    try {
      const start = await readAt(handle, 0, FILE_HEAD_BYTES);
      const head = await readAt(handle, 0, fileHeadBytes(start));
      const { size } = await handle.stat();
      return new RecordingFile(handle, decodeFileHead(head), head.length, size);
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  /** From the beginning, every time. `onBytes` is told the place reached in the file. */
  async *records(onBytes: (at: number) => void = () => undefined): AsyncGenerator<RecordingRecord> {
    let at = this.#firstBlockAt;
    for (;;) {
      const head = await readAt(this.#handle, at, BLOCK_HEAD_BYTES);
      const length = blockBytes(head);
      if (length === null) break;
      const payload = await readAt(this.#handle, at + BLOCK_HEAD_BYTES, length);
      if (payload.length < length || !blockIntact(head, payload)) break;
      at += BLOCK_HEAD_BYTES + length;
      onBytes(at);
      yield* decodeBlock(payload);
    }
    this.tornBytes = this.bytes - at;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close();
  }
}

/** At most `length` bytes: fewer at the file's end. */
async function readAt(handle: FileHandle, position: number, length: number): Promise<Buffer> {
  const buffer = Buffer.allocUnsafe(length);
  let filled = 0;
  while (filled < length) {
    const { bytesRead } = await handle.read(buffer, filled, length - filled, position + filled);
    if (bytesRead === 0) break;
    filled += bytesRead;
  }
  return buffer.subarray(0, filled);
}

export interface SessionScan {
  readonly parameters: Readonly<Record<string, string>>;
  /** How many of its `sent` records are to be replayed. */
  pieces: number;
  complete: boolean;
}

export interface RecordingScan {
  readonly sessions: ReadonlyMap<number, SessionScan>;
  readonly statements: number;
  readonly errors: number;
  readonly clientBytes: number;
  readonly durationMicros: number;
  readonly incompleteSessions: number;
  /** Most sessions open at a time. */
  readonly concurrentSessions: number;
  readonly tornBytes: number;
  /** The recording was ended properly. */
  readonly ended: boolean;
}

interface SessionWalk {
  readonly scan: SessionScan;
  readonly frames: SyncPoints;
  pieces: number;
  /** Pieces before the last whole, answered, idle moment. */
  safePieces: number;
  open: boolean;
}

/** One pass over the file. */
export async function scanRecording(file: RecordingFile): Promise<RecordingScan> {
  const walks = new Map<number, SessionWalk>();
  const totals = { statements: 0, errors: 0, clientBytes: 0, durationMicros: 0 };
  let open = 0;
  let concurrentSessions = 0;
  let ended = false;
  for await (const record of file.records()) {
    totals.durationMicros = Math.max(totals.durationMicros, record.micros);
    if (record.type === 'end') ended = true;
    else if (record.type === 'opened') {
      walks.set(record.session, newWalk(record.parameters));
      open += 1;
      concurrentSessions = Math.max(concurrentSessions, open);
    }
    const walk = walks.get(record.session);
    if (walk === undefined) continue;
    if (record.type === 'outcome') {
      totals.statements += 1;
      if (record.outcome.errorClass !== 0) totals.errors += 1;
    } else if (record.type === 'sent') {
      const idle = record.inFlight === 0 && record.status === STATUS_IDLE && walk.frames.atSyncPoint;
      if (idle) walk.safePieces = walk.pieces;
      walk.frames.walk(record.bytes);
      walk.pieces += 1;
      totals.clientBytes += record.bytes.length;
    } else if (record.type === 'closed' || record.type === 'lost') {
      if (walk.open) open -= 1;
      walk.open = false;
      walk.scan.complete = record.type === 'closed';
    }
  }
  const sessions = new Map<number, SessionScan>();
  for (const [id, { scan, pieces, safePieces }] of walks) {
    scan.pieces = scan.complete ? pieces : safePieces;
    sessions.set(id, scan);
  }
  const incompleteSessions = [...sessions.values()].filter(({ complete }) => !complete).length;
  return { sessions, ...totals, incompleteSessions, concurrentSessions, tornBytes: file.tornBytes, ended };
}

/**
 * Leaves only sessions of one database to be replayed: there is one server database to replay against. Throws
 * `config-invalid` where the recording holds several and none is named, or not the one named.
 */
export function chooseDatabase(scan: RecordingScan, wanted: string | undefined): void {
  const databases = [
    ...new Set([...scan.sessions.values()].map(({ parameters }) => parameters['database'] ?? '')),
  ];
  if (wanted === undefined && databases.length <= 1) return;
  if (wanted === undefined || !databases.includes(wanted))
    throw new UnderstudyError('config-invalid', `the recording holds sessions of ${databases.join(', ')}`, {
      advice: 'Name the one to replay: --database.',
    });
  for (const session of scan.sessions.values())
    if (session.parameters['database'] !== wanted) session.pieces = 0;
}

function newWalk(parameters: Readonly<Record<string, string>>): SessionWalk {
  return {
    scan: { parameters, pieces: 0, complete: false },
    frames: new SyncPoints(),
    pieces: 0,
    safePieces: 0,
    open: true,
  };
}

/** Follows a client's frames, to know whether the last whole one was a sync point. */
class SyncPoints {
  readonly #header = Buffer.alloc(FRAME_HEADER_BYTES);
  #headerBytes = 0;
  #remaining = 0;
  #type = 0;

  get atSyncPoint(): boolean {
    if (this.#remaining > 0 || this.#headerBytes > 0) return false;
    return (
      this.#type === 0 ||
      this.#type === FRONTEND.query ||
      this.#type === FRONTEND.sync ||
      this.#type === FRONTEND.functionCall ||
      // The answer to a COPY's end is what was awaited where nothing is in flight any more.
      this.#type === FRONTEND.copyDone ||
      this.#type === FRONTEND.copyFail
    );
  }

  walk(bytes: Buffer): void {
    for (let at = 0; at < bytes.length;) {
      if (this.#remaining > 0) {
        const skipped = Math.min(this.#remaining, bytes.length - at);
        this.#remaining -= skipped;
        at += skipped;
        continue;
      }
      this.#header[this.#headerBytes] = bytes[at] ?? 0;
      this.#headerBytes += 1;
      at += 1;
      if (this.#headerBytes < FRAME_HEADER_BYTES) continue;
      this.#headerBytes = 0;
      this.#type = this.#header[0] ?? 0;
      this.#remaining = Math.max(0, this.#header.readInt32BE(1) - 4);
    }
  }
}
