/**
 * What the proxy itself says to a session's backend, between the client's messages: questions, which wait for a quiet
 * moment, and orders. Their answers never reach the client.
 */
import { FRAME_HEADER_BYTES, FRONTEND, encodeFrame, encodeSync } from '../../wire/postgres/messages.js';
import { rewriteParse } from '../../wire/postgres/oid-fields.js';
import { encodeRawQuery } from '../../wire/postgres/raw-text.js';
import type { ClientStream } from './client-stream.js';
import { OwnExchanges } from './own-exchanges.js';
import { OwnQuestions, type Question } from './own-questions.js';
import type { OwnKind, ResponseTracker } from './response-tracker.js';
import type { ServerStream } from './server-stream.js';
import type { SessionOids } from './type-oids.js';
import type { Reply } from '../backend/reply-reader.js';

export interface SessionOwnDeps {
  readonly tracker: ResponseTracker;
  readonly clientStream: () => ClientStream;
  readonly serverStream: () => ServerStream;
  readonly oids: () => SessionOids | null;
  readonly toServer: (bytes: Buffer) => void;
  /** A simple query can be sent now and harms nothing. */
  readonly askable: () => boolean;
  readonly replyBytesMax: number;
}

export class SessionOwn {
  readonly #deps: SessionOwnDeps;
  readonly exchanges: OwnExchanges;
  readonly questions: OwnQuestions;

  constructor(deps: SessionOwnDeps) {
    this.#deps = deps;
    this.exchanges = new OwnExchanges(deps.replyBytesMax);
    this.questions = new OwnQuestions({
      askable: deps.askable,
      send: (sql) => this.#sendQuestion(sql),
      changes: () => deps.clientStream().changes,
    });
  }

  send(messages: Buffer, kind: OwnKind): Promise<Reply> {
    const reply = this.#expect(kind);
    this.#deps.toServer(messages);
    return reply;
  }

  /** See {@link OwnQuestions.ask}. An unnamed statement, which a simple query destroys, is made again behind it. */
  ask(sql: (() => string) | null): Question {
    return this.questions.ask(sql);
  }

  /** As `ask`, at once: also within a transaction. The caller sees to it that nothing is under way. */
  askAnyway(sql: string): Promise<Reply> {
    return this.#sendQuestion(sql);
  }

  #sendQuestion(sql: string): Promise<Reply> {
    const reply = this.#expect('own-query');
    this.#deps.toServer(Buffer.concat([encodeRawQuery(sql), this.unnamedAgain()]));
    return reply;
  }

  /** What makes the unnamed prepared statement again, to be written next; empty where there is none. */
  unnamedAgain(): Buffer {
    const payload = this.#deps.clientStream().unnamedParse;
    if (payload === null) return NOTHING;
    // It was accepted before; where it no longer is, its client learns of it from its Bind.
    this.#expect('own-sync').catch(() => undefined);
    const frame = encodeFrame(FRONTEND.parse, payload);
    const oids = this.#deps.oids();
    if (oids !== null) rewriteParse(frame, FRAME_HEADER_BYTES, frame.length, oids.toServer.types);
    return Buffer.concat([frame, encodeSync()]);
  }

  /** Call right before the message is written. */
  #expect(kind: OwnKind): Promise<Reply> {
    const reply = this.exchanges.expect();
    this.#deps.tracker.sentOwn(kind);
    this.#deps.serverStream().ownSent();
    return reply;
  }

  /** The backend, or the session, is gone. */
  lost(reason: string): void {
    this.exchanges.lost(reason);
    this.questions.lost();
  }
}

const NOTHING = Buffer.alloc(0);
