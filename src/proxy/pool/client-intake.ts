/**
 * What becomes of a pooled client's messages: which of them a shared connection takes, which need a connection of its
 * own, which are answered here; and, once it has one, their passage.
 *
 * Nothing passes the end of what a server may be sent at present: behind a closing gate, behind a Terminate, or in front
 * of a message that is answered here while answers of the server are due.
 */
import {
  FRAME_HEADER_BYTES,
  FRONTEND,
  encodeCommandComplete,
  encodeReadyForQuery,
} from '../../wire/postgres/messages.js';
import { UnderstudyError } from '../../core/errors.js';
import { endsPreparedTransaction } from '../../wire/postgres/statement-text.js';
import { mustFollowAnswers } from '../session/client-stream.js';
import { STATUS_FAILED, STATUS_IDLE, type ResponseTracker } from '../session/response-tracker.js';
import type { StatementLog } from '../session/statement-log.js';
import type { ClientInput } from './client-input.js';
import type { ClientMessages } from './client-messages.js';
import { SEQUENCE_STATE } from './decisions.js';
import type { PooledBackend } from './pooled-backend.js';
import type { PoolContext } from './pool-context.js';

export interface IntakeHost {
  /** Nothing of the client is in flight. */
  readonly isIdle: boolean;
  readonly gateClosed: boolean;
  /** Sends the reads at the start of `bytes` down a shared connection; returns how many bytes those were. */
  share(bytes: Buffer): number;
  toClient(bytes: Buffer): void;
  /** What comes next needs a connection of the client's own. */
  acquire(): void;
  /** The client says goodbye, and nothing of it is in flight. */
  leave(): void;
}

/** A longer DEALLOCATE of one name can't be. */
const DEALLOCATE_BYTES_MAX = 300;
const DEALLOCATE = /^\s*deallocate\s+(?:prepare\s+)?(?:"([^"]+)"|([a-z_][\w$]*))\s*;?\s*$/i;
const READY = encodeReadyForQuery('I');
/** Types a client may send once it is logged in. */
const KNOWN: ReadonlySet<number> = new Set([
  FRONTEND.query,
  FRONTEND.parse,
  FRONTEND.bind,
  FRONTEND.describe,
  FRONTEND.execute,
  FRONTEND.close,
  FRONTEND.flush,
  FRONTEND.sync,
  FRONTEND.functionCall,
  FRONTEND.copyData,
  FRONTEND.copyDone,
  FRONTEND.copyFail,
  FRONTEND.terminate,
]);

export class ClientIntake {
  readonly #context: PoolContext;
  readonly #host: IntakeHost;
  readonly #input: ClientInput;
  readonly #messages: ClientMessages;
  readonly #tracker: ResponseTracker;
  readonly #log: StatementLog;
  /** So many bytes have to be there before it is worth another look. */
  #need = 0;
  /** What comes next is answered here, and not before what was sent is. */
  waitsForAnswers = false;
  /** The client has said goodbye. */
  terminated = false;

  constructor(
    context: PoolContext,
    host: IntakeHost,
    parts: {
      readonly input: ClientInput;
      readonly messages: ClientMessages;
      readonly tracker: ResponseTracker;
      readonly log: StatementLog;
    },
  ) {
    this.#context = context;
    this.#host = host;
    this.#input = parts.input;
    this.#messages = parts.messages;
    this.#tracker = parts.tracker;
    this.#log = parts.log;
  }

  /** Returns whether there is something to be done about it. */
  receive(chunk: Buffer): boolean {
    let rest = chunk;
    if (this.#input.length === 0) {
      const used = this.#host.share(chunk);
      if (used === chunk.length) return false;
      if (used > 0) rest = chunk.subarray(used);
    }
    this.#input.push(rest);
    return this.#input.length >= this.#need;
  }

  /** Call before any look at what is there. */
  looking(): void {
    this.#need = 0;
  }

  /** What comes first decides where it goes. Throws `protocol-violation`, `frame-too-large`. */
  begin(): void {
    const input = this.#input;
    while (input.length > 0) {
      const used = this.#host.share(input.all());
      if (used > 0) {
        input.drop(used);
        continue;
      }
      const bytes = input.all();
      const have = input.readable(bytes, 0);
      if (have === 0) {
        this.#need = input.length + 1;
        return;
      }
      if (!this.#host.isIdle || !this.#beginWith(bytes, have)) return;
    }
  }

  /** Deals with the message at the start of `bytes`. Returns whether the next one may be looked at. */
  #beginWith(bytes: Buffer, have: number): boolean {
    const type = bytes[0] as number;
    if (type === FRONTEND.terminate) {
      this.#host.leave();
      return false;
    }
    if (!KNOWN.has(type)) throw invalidType(type);
    if (this.#host.gateClosed && !this.#mayPassGate(type, bytes, have)) return false;
    // One with something in it is the server's to refuse.
    if ((type === FRONTEND.sync || type === FRONTEND.flush) && have === FRAME_HEADER_BYTES) {
      this.#input.drop(have);
      if (type === FRONTEND.sync) this.#host.toClient(READY);
      return true;
    }
    const gone = this.#deallocated(type, bytes, 0, have);
    if (gone !== null) {
      this.#input.drop(have);
      this.#deallocate(gone);
      return true;
    }
    this.#lookForSequences(type, bytes, have);
    this.#host.acquire();
    return false;
  }

  /** Before a connection is given: whoever asks for it must not be told what sequences gave another client. */
  #lookForSequences(type: number, bytes: Buffer, have: number): void {
    const { sequences } = this.#context;
    if (sequences.asked || (type !== FRONTEND.query && type !== FRONTEND.parse)) return;
    sequences.asked = SEQUENCE_STATE.test(bytes.toString('latin1', FRAME_HEADER_BYTES, have));
  }

  /** The end of a prepared transaction, which others may wait for. */
  #mayPassGate(type: number, bytes: Buffer, have: number): boolean {
    if (type !== FRONTEND.query || !this.#context.mayPassHeld()) return false;
    return endsPreparedTransaction(bytes.toString('latin1', FRAME_HEADER_BYTES, have - 1));
  }

  /** Sends on frame by frame, as far as they are there and may go. False: the connection is full. Throws as `begin`. */
  pump(backend: PooledBackend): boolean {
    const input = this.#input;
    const bytes = input.all();
    this.waitsForAnswers = false;
    let at = 0;
    if (input.passing > 0) {
      at = Math.min(input.passing, bytes.length);
      this.#messages.pass(bytes, 0, at);
      input.passing -= at;
    }
    while (at < bytes.length && input.passing === 0) {
      const have = input.readable(bytes, at);
      if (have === 0) {
        this.#need = bytes.length - at + 1;
        break;
      }
      const type = bytes[at] as number;
      if (type === FRONTEND.terminate) {
        this.terminated = true;
        break;
      }
      if (this.#mustWait(type)) break;
      if (!KNOWN.has(type)) {
        // The server would end the connection once it has answered what stands in front; here it may be another's then.
        this.waitsForAnswers = this.#tracker.awaitingReady;
        if (this.waitsForAnswers) break;
        if (this.#tracker.quiescent) throw invalidType(type);
      }
      const gone = this.#deallocated(type, bytes, at, have);
      if (gone !== null) {
        this.waitsForAnswers = !this.#tracker.settled;
        if (this.waitsForAnswers) break;
        this.#deallocate(gone);
        at += have;
        continue;
      }
      const whole = bytes.readInt32BE(at + 1) + 1;
      this.#messages.frame(bytes, at, at + have, backend);
      input.passing = whole - have;
      at += have;
    }
    input.drop(at);
    const out = this.#messages.take();
    return out === null || backend.write(out);
  }

  /** While the gate closes, nothing follows a sync point before its ReadyForQuery. */
  #mustWait(type: number): boolean {
    return this.#host.gateClosed && mustFollowAnswers(this.#tracker, type);
  }

  /** The statement that is to be deallocated by a name the server doesn't know; null where the frame is not that. */
  #deallocated(type: number, bytes: Buffer, at: number, have: number): string | null {
    const { names } = this.#messages;
    if (type !== FRONTEND.query || have > DEALLOCATE_BYTES_MAX || names.size === 0) return null;
    if (this.#tracker.status === STATUS_FAILED) return null;
    const match = DEALLOCATE.exec(bytes.toString('latin1', at + FRAME_HEADER_BYTES, at + have - 1));
    const name = match?.[1] ?? match?.[2]?.toLowerCase();
    return name !== undefined && names.has(name) ? name : null;
  }

  /** Answers it here: nothing else is due. */
  #deallocate(name: string): void {
    this.#messages.names.delete(name);
    this.#log.closeStatement(name);
    const status = this.#tracker.status === STATUS_IDLE ? 'I' : 'T';
    this.#host.toClient(Buffer.concat([encodeCommandComplete('DEALLOCATE'), encodeReadyForQuery(status)]));
  }
}

/** In the server's words. */
function invalidType(type: number): UnderstudyError {
  return new UnderstudyError('protocol-violation', `invalid frontend message type ${type}`);
}
