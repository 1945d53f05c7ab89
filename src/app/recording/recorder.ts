/**
 * Writes a recording of what clients send, beside the traffic.
 *
 *   data path ──copy──► block at hand ──full, or after 200 ms──► queue of sealed blocks ──one write at a time──► file
 *
 * The queue is bounded in bytes. Where it is full, the session whose bytes found no room is *lost* from there on: nothing
 * more of it is recorded, a record says so, and a replay cuts it at its last whole transaction. So a slow disk costs
 * recordings, never traffic, and never makes a recording say something that did not happen.
 *
 * States: recording → full (`bytesMax` reached: what is open counts as lost) → closed; recording → failed (the file can't
 * be written) → closed.
 *
 * Where several processes serve clients, each has a recorder of its own on the same file: the first makes it, the others
 * *join*. Every block is appended by one write and depends on no other; a session's all come from one process. So blocks
 * of different processes may stand out of order by as long as they wait to be written, those of one session never.
 *
 * Never recorded: anything of the handshake (passwords, proofs), answers, replication connections. Recorded: bound
 * parameters and texts, since a replay needs them; hence mode 0600.
 */
import { constants } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { resolve } from 'node:path';
import { UnderstudyError, asUnderstudyError } from '../../core/errors.js';
import type { Log } from '../../core/log.js';
import type { StatementTap, TrafficRecorder } from '../../core/capture-ports.js';
import {
  BLOCK_BYTES,
  BlockWriter,
  PIECE_BYTES_MAX,
  encodeFileHead,
  type RecordingHeader,
} from '../../wire/recording.js';

export interface RecorderOptions {
  readonly file: string;
  /** The file grows no further than about this; 0: no bound. */
  readonly bytesMax: number;
  /** Sealed blocks that wait for the disk. */
  readonly queueBytesMax: number;
  readonly log: Log;
  /** Milliseconds that never run backwards, by the same clock in every process that writes the file. */
  readonly nowMs: () => number;
  readonly header: RecordingHeader;
}

/** What another process must know to record to the same file. */
export interface SharedRecording {
  readonly file: string;
  readonly bytesMax: number;
  /** When it began, by the clock of `nowMs`. */
  readonly startedMs: number;
}

export const RECORDER_QUEUE_BYTES_MAX = 64 * BLOCK_BYTES;
const SEAL_AFTER_MS = 200;
const PARAMETER_BYTES_MAX = 16_384;
/** Who joins writes none. */
const JOINED: RecordingHeader = { startedAt: '', writer: '' };

export interface RecorderStatus {
  readonly state: 'recording' | 'full' | 'failed' | 'closed';
  readonly bytes: number;
  readonly sessions: number;
  readonly sessionsLost: number;
  /** Bytes of clients that found no room. */
  readonly bytesDropped: number;
}

interface SessionState {
  /** Sync points sent as of the last record. */
  sentBefore: number;
  lost: boolean;
  /** It is lost, and the file says so. */
  marked: boolean;
}

export class Recorder implements TrafficRecorder {
  readonly #options: RecorderOptions;
  readonly #handle: FileHandle;
  readonly #startedMs: number;
  readonly #joined: boolean;
  #others: readonly RecorderStatus[] = [];
  readonly #sessions = new Map<number, SessionState>();
  #block = new BlockWriter();
  #queue: Buffer[] = [];
  #queuedBytes = 0;
  #fileBytes = 0;
  #writing: Promise<void> | null = null;
  #timer: NodeJS.Timeout | undefined;
  #state: RecorderStatus['state'] = 'recording';
  #opened = 0;
  #lost = 0;
  #bytesDropped = 0;
  #lastMicros = 0;

  private constructor(
    options: RecorderOptions,
    handle: FileHandle,
    { startedMs, joined }: { readonly startedMs: number; readonly joined: boolean },
  ) {
    this.#options = options;
    this.#handle = handle;
    this.#startedMs = startedMs;
    this.#joined = joined;
    this.#timer = setInterval(() => this.#seal(), SEAL_AFTER_MS).unref();
  }

  /** Creates the file, readable by its owner alone. Throws `config-invalid` where one is there already. */
  static async create(options: RecorderOptions): Promise<Recorder> {
    let handle: FileHandle;
    try {
      handle = await open(options.file, 'ax', 0o600);
    } catch (error) {
      throw new UnderstudyError(
        'config-invalid',
        `the recording ${options.file} can’t be made: ${reason(error)}`,
        {
          cause: error,
          advice: 'Name a file that does not exist yet, in a folder that may be written to.',
        },
      );
    }
    const recorder = new Recorder(options, handle, { startedMs: options.nowMs(), joined: false });
    const head = encodeFileHead(options.header);
    await handle.write(head);
    recorder.#fileBytes = head.length;
    return recorder;
  }

  /** Writes to a file that another process has created. Throws what opening it throws. */
  static async join(
    { startedMs, ...shared }: SharedRecording,
    own: Pick<RecorderOptions, 'log' | 'nowMs'>,
  ): Promise<Recorder> {
    // Without O_CREAT: a file that was taken away meanwhile must not come back without a head.
    const handle = await open(shared.file, constants.O_WRONLY | constants.O_APPEND);
    const options = { ...shared, ...own, queueBytesMax: RECORDER_QUEUE_BYTES_MAX, header: JOINED };
    const recorder = new Recorder(options, handle, { startedMs, joined: true });
    recorder.#fileBytes = (await handle.stat()).size;
    return recorder;
  }

  get shared(): SharedRecording {
    const { file, bytesMax } = this.#options;
    return { file: resolve(file), bytesMax, startedMs: this.#startedMs };
  }

  /** Where another process has recorded to the same file: it counts in the status from now on. */
  add(other: RecorderStatus): void {
    this.#others = [...this.#others, other];
  }

  get status(): RecorderStatus {
    const own: RecorderStatus = {
      state: this.#state,
      bytes: this.#fileBytes,
      sessions: this.#opened,
      sessionsLost: this.#lost,
      bytesDropped: this.#bytesDropped,
    };
    return this.#others.reduce(
      (sum, other) => ({
        state: other.state === 'failed' || other.state === 'full' ? other.state : sum.state,
        bytes: Math.max(sum.bytes, other.bytes),
        sessions: sum.sessions + other.sessions,
        sessionsLost: sum.sessionsLost + other.sessionsLost,
        bytesDropped: sum.bytesDropped + other.bytesDropped,
      }),
      own,
    );
  }

  opened(sessionId: number, parameters: ReadonlyMap<string, string>): void {
    if (this.#state !== 'recording') return;
    const before = this.#sessions.get(sessionId);
    if (before !== undefined) {
      // Another has taken it over at a quiet moment, and counts sync points from there.
      before.sentBefore = 0;
      return;
    }
    const json = Buffer.from(JSON.stringify(Object.fromEntries(parameters)));
    const session: SessionState = { sentBefore: 0, lost: false, marked: false };
    this.#sessions.set(sessionId, session);
    this.#opened += 1;
    const micros = this.#micros();
    if (json.length > PARAMETER_BYTES_MAX || !this.#put((block) => block.opened(sessionId, micros, json)))
      this.#lose(sessionId, session, 0);
  }

  sent(sessionId: number, bytes: Buffer, syncsSent: number, syncsAnswered: number, status: number): void {
    const session = this.#sessions.get(sessionId);
    if (session === undefined || this.#state !== 'recording') return;
    const inFlight = Math.max(0, session.sentBefore - syncsAnswered);
    session.sentBefore = syncsSent;
    if (session.lost) {
      this.#lose(sessionId, session, bytes.length);
      return;
    }
    const micros = this.#micros();
    for (let at = 0; at < bytes.length; at += PIECE_BYTES_MAX) {
      const piece = bytes.length <= PIECE_BYTES_MAX ? bytes : bytes.subarray(at, at + PIECE_BYTES_MAX);
      if (this.#put((block) => block.sent(sessionId, micros, inFlight, status, piece))) continue;
      this.#lose(sessionId, session, bytes.length - at);
      return;
    }
  }

  closed(sessionId: number): void {
    const session = this.#sessions.get(sessionId);
    if (session === undefined) return;
    this.#sessions.delete(sessionId);
    if (this.#state !== 'recording') return;
    const micros = this.#micros();
    // Without room for it the session stays open in the recording, which counts as lost.
    this.#put((block) => block.mark(session.lost ? 'lost' : 'closed', sessionId, micros));
  }

  /** A tap that notes how statements went, in front of `inner`. */
  tap(inner: StatementTap | null): StatementTap {
    return {
      offer: (sessionId, text, durationMicros, rows, ...rest) => {
        const [, , , , , errorClass] = rest;
        this.#outcome(sessionId, durationMicros, rows, errorClass);
        return inner?.offer(sessionId, text, durationMicros, rows, ...rest) ?? true;
      },
      skipped: () => inner?.skipped?.(),
    };
  }

  #outcome(sessionId: number, durationMicros: number, rows: number, errorClass: number): void {
    const session = this.#sessions.get(sessionId);
    if (session === undefined || session.lost || this.#state !== 'recording') return;
    const micros = this.#micros();
    const outcome = { durationMicros, rows, errorClass };
    if (!this.#put((block) => block.outcome(sessionId, micros, outcome))) this.#lose(sessionId, session, 0);
  }

  #lose(sessionId: number, session: SessionState, bytes: number): void {
    this.#bytesDropped += bytes;
    if (!session.lost) this.#lost += 1;
    session.lost = true;
    if (session.marked) return;
    const micros = this.#micros();
    session.marked = this.#put((block) => block.mark('lost', sessionId, micros));
  }

  /** Never runs backwards. */
  #micros(): number {
    const micros = Math.round((this.#options.nowMs() - this.#startedMs) * 1000);
    if (micros > this.#lastMicros) this.#lastMicros = micros;
    return this.#lastMicros;
  }

  /** False where there is no room: the queue is full. */
  #put(write: (block: BlockWriter) => boolean): boolean {
    if (write(this.#block)) return true;
    if (this.#queuedBytes + BLOCK_BYTES > this.#options.queueBytesMax) return false;
    this.#seal();
    return this.#state === 'recording' && write(this.#block);
  }

  #seal(): void {
    if (this.#block.empty || this.#state === 'failed' || this.#state === 'closed') return;
    if (this.#queuedBytes + BLOCK_BYTES > this.#options.queueBytesMax) return;
    const block = this.#block.seal();
    this.#queue.push(block);
    this.#queuedBytes += block.length;
    this.#writing ??= this.#write().finally(() => (this.#writing = null));
    const { bytesMax } = this.#options;
    if (bytesMax === 0 || this.#state !== 'recording') return;
    if (this.#fileBytes + this.#queuedBytes < bytesMax) return;
    this.#state = 'full';
    this.#options.log.warn({ file: this.#options.file, bytesMax }, 'the recording is full: it ends here');
  }

  async #write(): Promise<void> {
    for (let block = this.#queue[0]; block !== undefined; block = this.#queue[0]) {
      try {
        // One write: what another process appends must not come between.
        const { bytesWritten } = await this.#handle.write(block);
        if (bytesWritten < block.length) throw new UnderstudyError('internal', 'the disk is full');
        this.#fileBytes = this.#joined ? (await this.#handle.stat()).size : this.#fileBytes + bytesWritten;
      } catch (error) {
        this.#fail(error);
        return;
      }
      this.#queuedBytes -= block.length;
      this.#queue.shift();
    }
  }

  #fail(error: unknown): void {
    this.#state = 'failed';
    this.#queue = [];
    this.#queuedBytes = 0;
    this.#sessions.clear();
    this.#options.log.error(
      { file: this.#options.file, error: asUnderstudyError(error, 'internal', 'writing').message },
      'the recording can’t be written: it ends here; traffic is not affected',
    );
  }

  /** Writes what is gathered. Sessions still open count as lost. Idempotent. */
  async close(): Promise<RecorderStatus> {
    if (this.#state === 'closed') return this.status;
    clearInterval(this.#timer);
    await this.#writing;
    if (this.#state !== 'failed') {
      const micros = this.#micros();
      const full = this.status.state === 'full';
      if (!full && !this.#joined && !this.#put((block) => block.mark('end', 0, micros)))
        this.#options.log.warn({}, 'the recording lacks its end');
      this.#seal();
      await this.#writing;
    }
    const ended = this.status;
    this.#state = 'closed';
    await this.#handle.close();
    return ended;
  }
}

function reason(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : String(error);
}
