/**
 * Records what a pooled client sends, as it arrives.
 *
 * A pooled client's messages go several ways (a connection of its own, shared ones, answers made here), and so do
 * their answers. What is common to all of them is the client's own socket: both of its directions are followed here,
 * as if the client had a server to itself. Nothing of this exists unless traffic is being recorded.
 *
 * States: recording → handed on (the client was pinned and goes on as a session, which records the rest) or ended.
 * Failure: bytes that are no frames end the recording of this client, which is about to be closed for them.
 */
import type { TrafficRecorder } from '../../core/capture-ports.js';
import { FrameWalker, PASS, type FrameVisitor } from '../../wire/postgres/frame-walker.js';
import { FRONTEND } from '../../wire/postgres/messages.js';
import type { AcceptedClient } from '../login/client-handshake.js';
import { OwnExchanges } from './own-exchanges.js';
import { ResponseTracker } from './response-tracker.js';
import { ServerStream } from './server-stream.js';
import { StatementLog } from './statement-log.js';

/** Of an error or a parameter, what is looked at. */
const PEEK_BYTES_MAX = 4096;

/** Startup parameters as a recording keeps them. */
export function recordedParameters({
  user,
  database,
  parameters,
}: Pick<AcceptedClient, 'user' | 'database' | 'parameters'>): ReadonlyMap<string, string> {
  return new Map([...parameters, ['user', user], ['database', database]]);
}

export class ClientRecording implements FrameVisitor {
  readonly #id: number;
  readonly #recorder: TrafficRecorder;
  readonly #tracker = new ResponseTracker();
  readonly #sent: FrameWalker;
  readonly #answers: ServerStream;
  #over = false;

  constructor(id: number, accepted: AcceptedClient, recorder: TrafficRecorder, frameBytesMax: number) {
    this.#id = id;
    this.#recorder = recorder;
    this.#sent = new FrameWalker(this, { frameBytesMax, peekBytesMax: 0 });
    this.#answers = new ServerStream({
      tracker: this.#tracker,
      log: new StatementLog(null, id, 0, () => 0),
      own: new OwnExchanges(PEEK_BYTES_MAX),
      frameBytesMax,
      replyBytesMax: PEEK_BYTES_MAX,
      oids: null,
      types: null,
      forward: () => undefined,
      onParameter: () => undefined,
      onError: () => undefined,
    });
    recorder.opened(id, recordedParameters(accepted));
  }

  fromClient(chunk: Buffer): void {
    this.#follow(() => this.#sent.walk(chunk));
  }

  toClient(bytes: Buffer): void {
    this.#follow(() => this.#answers.walker.walk(bytes));
  }

  #follow(walk: () => void): void {
    if (this.#over) return;
    try {
      walk();
    } catch {
      this.#over = true;
    }
  }

  begin(type: number): number {
    const tracker = this.#tracker;
    switch (type) {
      case FRONTEND.query:
        tracker.sentQuery();
        break;
      case FRONTEND.parse:
      case FRONTEND.bind:
      case FRONTEND.describe:
      case FRONTEND.execute:
      case FRONTEND.close:
        tracker.sentExtended();
        break;
      case FRONTEND.sync:
        tracker.sentSync();
        break;
      case FRONTEND.functionCall:
        tracker.sentFunctionCall();
        break;
      case FRONTEND.copyDone:
      case FRONTEND.copyFail:
        tracker.sentCopyEnd();
        break;
      default:
    }
    return PASS;
  }

  peek(): void {
    // No payload is asked for.
  }

  forward(bytes: Buffer): void {
    const { sent, answered, status } = this.#tracker;
    this.#recorder.sent(this.#id, bytes, sent, answered, status);
  }

  /** A session goes on with the client. Returns how many of the last bytes that came are not recorded yet. */
  handOn(): number {
    this.#over = true;
    return this.#sent.partialHeaderBytes;
  }

  closed(): void {
    this.#over = true;
    this.#recorder.closed(this.#id);
  }
}
