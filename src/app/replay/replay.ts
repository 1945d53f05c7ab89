/**
 * Replays a recording against a server: every session on a connection of its own, its pieces in order, at the recorded
 * times, faster, or as fast as answers come.
 *
 * The file is read ahead by {@link AHEAD_MS} of recorded time and {@link AHEAD_BYTES} at most. Where nothing moves although
 * so much was read (a session may wait for a lock whose holder's COMMIT was not read yet), reading goes on, up to a hard
 * bound; then the replay ends with `limit-reached`.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { asUnderstudyError, UnderstudyError, type SerializedError } from '../../core/errors.js';
import type { StatementTap } from '../../core/capture-ports.js';
import type { DatabaseEndpoint } from '../../core/ports.js';
import type { RecordingRecord } from '../../wire/recording.js';
import { Comparison, type ComparisonReport } from './comparison.js';
import { ReplaySession } from './replay-session.js';
import type { RecordingFile, RecordingScan } from './recording-file.js';

const AHEAD_MS = 2_000;
const AHEAD_BYTES = 32 << 20;
const AHEAD_BYTES_MAX = 8 * AHEAD_BYTES;
const STUCK_AFTER_MS = 1_000;
const FAILURES_SHOWN_MAX = 10;

export interface ReplayOptions {
  readonly endpoint: DatabaseEndpoint;
  /** Recorded time runs that many times as fast; `max`: no waiting but for answers. */
  readonly speed: number | 'max';
  /** Connections at a time; sessions beyond wait for one to end. */
  readonly sessionsMax: number;
  readonly answerTimeoutMs: number;
  readonly signal: AbortSignal;
}

export interface ReplayProgress {
  readonly share: number;
  readonly statements: number;
  readonly sessionsOpen: number;
  /** How far the replay is behind its times. */
  readonly lateMs: number;
}

export interface ReplayReport {
  readonly seconds: number;
  readonly speed: number | 'max';
  readonly sessions: { readonly replayed: number; readonly failed: number; readonly incomplete: number };
  /** The latest that any piece was sent, against its time; 0 with `max`. */
  readonly lateMsMax: number;
  readonly failures: readonly { readonly session: number; readonly error: SerializedError }[];
  readonly comparison: ComparisonReport;
}

export class Replay {
  readonly #file: RecordingFile;
  readonly #scan: RecordingScan;
  readonly #options: ReplayOptions;
  readonly #comparison = new Comparison();
  readonly #sessions = new Map<number, { readonly session: ReplaySession; pieces: number }>();
  readonly #running = new Set<Promise<void>>();
  readonly #failures: { session: number; error: SerializedError }[] = [];
  #failed = 0;
  #replayed = 0;
  #open = 0;
  readonly #waitingForPlace: (() => void)[] = [];
  #startedMs = 0;
  #firstMicros = -1;
  #lastMicros = 0;
  #queuedBytes = 0;
  #takenAt = 0;
  #lateMs = 0;
  #lateMsMax = 0;
  #statements = 0;

  constructor(file: RecordingFile, scan: RecordingScan, options: ReplayOptions) {
    this.#file = file;
    this.#scan = scan;
    this.#options = options;
  }

  get progress(): ReplayProgress {
    const span = Math.max(1, this.#scan.durationMicros);
    return {
      share: Math.min(1, this.#lastMicros / span),
      statements: this.#statements,
      sessionsOpen: this.#open,
      lateMs: this.#lateMs,
    };
  }

  /** Throws `cancelled`, `limit-reached`, `recording-unreadable`. Sessions that fail are in the report. */
  async run(): Promise<ReplayReport> {
    this.#startedMs = performance.now();
    try {
      await this.#readAll();
    } catch (error) {
      for (const { session } of this.#sessions.values()) session.finish();
      this.#options.signal.throwIfAborted();
      throw error;
    }
    await Promise.all(this.#running);
    this.#options.signal.throwIfAborted();
    return this.#report();
  }

  async #readAll(): Promise<void> {
    for await (const record of this.#file.records()) {
      this.#options.signal.throwIfAborted();
      if (this.#firstMicros < 0) this.#firstMicros = record.micros;
      await this.#readAhead(record.micros);
      this.#record(record);
    }
    // What the recording doesn't end was cut by the scan.
    for (const { session } of this.#sessions.values()) session.finish();
  }

  #report(): ReplayReport {
    return {
      seconds: (performance.now() - this.#startedMs) / 1000,
      speed: this.#options.speed,
      sessions: {
        replayed: this.#replayed,
        failed: this.#failed,
        incomplete: this.#scan.incompleteSessions,
      },
      lateMsMax: Math.round(this.#lateMsMax),
      failures: this.#failures,
      comparison: this.#comparison.report(),
    };
  }

  #record(record: RecordingRecord): void {
    const scanned = this.#scan.sessions.get(record.session);
    if (scanned === undefined) return;
    if (record.type === 'opened') {
      if (scanned.pieces > 0) this.#begin(record.session, scanned.parameters);
      return;
    }
    const entry = this.#sessions.get(record.session);
    if (entry === undefined) return;
    switch (record.type) {
      case 'sent':
        entry.pieces += 1;
        if (entry.pieces > scanned.pieces) {
          // Cut here: what follows is not replayed, and its outcomes have nothing to be compared with.
          entry.session.finish();
          this.#sessions.delete(record.session);
          return;
        }
        this.#queuedBytes += record.bytes.length;
        // The block's memory would stay as long as one piece of it is kept.
        entry.session.push({ ...record, bytes: Buffer.from(record.bytes) });
        return;
      case 'outcome':
        this.#comparison.recorded(record.session, record.outcome);
        return;
      case 'closed':
      case 'lost':
        entry.session.finish();
        this.#sessions.delete(record.session);
        return;
      case 'end':
        return;
      default:
        record satisfies never;
    }
  }

  #begin(id: number, parameters: Readonly<Record<string, string>>): void {
    const { endpoint, answerTimeoutMs, signal } = this.#options;
    const session = new ReplaySession({
      id,
      endpoint,
      parameters,
      tap: this.#tap(),
      due: (micros) => this.#due(micros),
      taken: (bytes) => {
        this.#queuedBytes -= bytes;
        this.#takenAt = performance.now();
      },
      answerTimeoutMs,
      signal,
    });
    this.#sessions.set(id, { session, pieces: 0 });
    const running = this.#run(id, session);
    this.#running.add(running);
    void running.finally(() => this.#running.delete(running));
  }

  async #run(id: number, session: ReplaySession): Promise<void> {
    await this.#place();
    try {
      await session.run();
      this.#replayed += 1;
    } catch (error) {
      this.#failed += 1;
      if (this.#failures.length < FAILURES_SHOWN_MAX)
        this.#failures.push({
          session: id,
          error: asUnderstudyError(error, 'internal', 'replaying a session').toJSON(),
        });
      // Its pieces to come are read past.
      this.#sessions.delete(id);
    } finally {
      this.#open -= 1;
      this.#waitingForPlace.shift()?.();
    }
  }

  async #place(): Promise<void> {
    if (this.#open >= this.#options.sessionsMax)
      await new Promise<void>((resolve) => this.#waitingForPlace.push(resolve));
    this.#open += 1;
  }

  #tap(): StatementTap {
    return {
      offer: (session, text, durationMicros, rows, ...[, , , , , errorClass]) => {
        this.#statements += 1;
        this.#comparison.replayed(session, { durationMicros, rows, errorClass }, text.toString());
        return true;
      },
    };
  }

  /** Milliseconds until that moment of the recording; negative where it is past. */
  #untilMs(micros: number): number {
    const { speed } = this.#options;
    if (speed === 'max') return 0;
    const at = this.#startedMs + (micros - this.#firstMicros) / 1000 / speed;
    return at - performance.now();
  }

  async #due(micros: number): Promise<void> {
    const waitMs = this.#untilMs(micros);
    if (waitMs > 1) await sleep(waitMs, undefined, { signal: this.#options.signal });
    this.#lateMs = Math.max(0, -this.#untilMs(micros));
    if (this.#lateMs > this.#lateMsMax) this.#lateMsMax = this.#lateMs;
    if (micros > this.#lastMicros) this.#lastMicros = micros;
  }

  async #readAhead(micros: number): Promise<void> {
    const { signal } = this.#options;
    const waitMs = this.#untilMs(micros) - AHEAD_MS;
    if (waitMs > 0) await sleep(waitMs, undefined, { signal });
    if (this.#queuedBytes <= AHEAD_BYTES) return;
    const since = performance.now();
    this.#takenAt = since;
    while (this.#queuedBytes > AHEAD_BYTES && performance.now() - this.#takenAt < STUCK_AFTER_MS)
      await sleep(10, undefined, { signal });
    if (this.#queuedBytes > AHEAD_BYTES_MAX)
      throw new UnderstudyError(
        'limit-reached',
        `${this.#queuedBytes} bytes of the recording wait to be sent`,
        {
          advice: 'The server does not keep up: replay at a lower --speed, or with more --sessions.',
        },
      );
  }
}
