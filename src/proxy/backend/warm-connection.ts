/**
 * A backend connection that is being prepared for a session and kept until the session takes it over.
 *
 * States: idle · asking (an `exchange` is open) · dead (the server closed it, or it said something it must not) ·
 * taken (its socket belongs to the session).
 *
 * While it waits it goes on listening: ParameterStatus is followed, notifications are kept (bounded) and given to the
 * client when the session moves, a FATAL or a close makes it dead.
 */
import type net from 'node:net';
import { UnderstudyError } from '../../core/errors.js';
import { DROP, FrameWalker, PEEK, actionTable } from '../../wire/postgres/frame-walker.js';
import {
  BACKEND,
  encodeFrame,
  encodeSync,
  encodeTerminate,
  parseParameterStatus,
} from '../../wire/postgres/messages.js';
import { encodeRawQuery } from '../../wire/postgres/raw-text.js';
import type { Backend } from './backend.js';
import { ReplyReader, type Reply } from './reply-reader.js';
import { feedFrom, type SocketFeed } from '../socket-feed.js';

interface OpenExchange {
  readonly replies: Reply[];
  readonly wanted: number;
  readonly resolve: (replies: Reply[]) => void;
  readonly reject: (error: Error) => void;
}

const SHOW_ALL = actionTable(PEEK | DROP);
const NOTIFICATIONS_MAX = 1000;

export class WarmConnection {
  readonly backend: Backend;
  readonly #socket: net.Socket;
  readonly #walker: FrameWalker;
  #state: 'idle' | 'asking' | 'dead' | 'taken' = 'idle';
  #exchange: OpenExchange | null = null;
  readonly #reply: ReplyReader;
  #notifications: Buffer[] = [];
  #feed: SocketFeed | null = null;
  readonly #onData = (chunk: Buffer): void => this.#read(chunk);
  readonly #onGone = (): void => this.#die('the server closed the connection');

  /**
   * Takes a backend fresh from `openBackend`, or one that a session has left at rest (`relayed`). `replyBytesMax` bounds
   * the rows of an answer.
   */
  constructor(
    backend: Backend,
    bounds: { readonly frameBytesMax: number; readonly replyBytesMax: number },
    relayed = false,
  ) {
    this.backend = backend;
    this.#reply = new ReplyReader(bounds.replyBytesMax);
    this.#socket = backend.socket;
    this.#walker = new FrameWalker(
      {
        begin: () => PEEK | DROP,
        peek: (type, bytes, start, end, payloadBytes) =>
          this.#frame(type, bytes.subarray(start, end), payloadBytes),
        forward: () => undefined,
      },
      { frameBytesMax: bounds.frameBytesMax, peekBytesMax: bounds.replyBytesMax },
      SHOW_ALL,
    );
    this.#socket.on('error', this.#onGone);
    this.#socket.on('close', this.#onGone);
    if (relayed) this.#feed = feedFrom(this.#socket, this.#onData);
    else this.#socket.on('data', this.#onData);
    if (this.#socket.destroyed) this.#onGone();
    if (backend.leftover.length > 0) this.#read(backend.leftover);
    this.#socket.resume();
  }

  get alive(): boolean {
    return this.#state === 'idle' || this.#state === 'asking';
  }

  /** One simple query. Rejects with `warm-failed` where the connection is lost. */
  async query(sql: string): Promise<Reply> {
    const [reply] = await this.exchange([encodeRawQuery(sql)], 1);
    if (reply === undefined) throw new UnderstudyError('internal', 'an exchange ended without a reply');
    return reply;
  }

  /** Groups of extended messages, each followed by a Sync, so that an error stays within its group. */
  extended(groups: readonly (readonly Buffer[])[]): Promise<Reply[]> {
    if (groups.length === 0) return Promise.resolve([]);
    const sync = encodeSync();
    return this.exchange(
      groups.flatMap((group) => [...group, sync]),
      groups.length,
    );
  }

  /** Sends messages that are owed `wanted` ReadyForQuery in all. One exchange at a time. */
  exchange(messages: readonly Buffer[], wanted: number): Promise<Reply[]> {
    if (this.#state !== 'idle') {
      const state = this.#state;
      return Promise.reject(new UnderstudyError('warm-failed', `the connection on the new side is ${state}`));
    }
    this.#state = 'asking';
    return new Promise((resolve, reject) => {
      this.#exchange = { replies: [], wanted, resolve, reject };
      this.#socket.write(Buffer.concat(messages));
    });
  }

  /** Hands the socket over, paused and without listeners; returns notifications that came meanwhile, as frames. */
  take(): Buffer[] {
    if (this.#state !== 'idle') {
      throw new UnderstudyError('internal', `taking over a connection that is ${this.#state}`);
    }
    this.#state = 'taken';
    this.#socket.pause();
    this.#detach();
    return this.#notifications;
  }

  discard(): void {
    if (this.#state === 'taken') return;
    const exchange = this.#exchange;
    this.#exchange = null;
    this.#state = 'dead';
    this.#detach();
    this.#socket.end(encodeTerminate());
    this.#socket.resume();
    exchange?.reject(new UnderstudyError('warm-failed', 'the connection on the new side was given up'));
  }

  #detach(): void {
    this.#feed?.stop();
    this.#socket.off('data', this.#onData);
    this.#socket.off('error', this.#onGone);
    this.#socket.off('close', this.#onGone);
  }

  #read(chunk: Buffer): void {
    try {
      this.#walker.walk(chunk);
    } catch (error) {
      this.#die(error instanceof Error ? error.message : String(error));
      this.#socket.destroy();
    }
  }

  #frame(type: number, payload: Buffer, payloadBytes: number): void {
    switch (type) {
      case BACKEND.dataRow:
        this.#reply.row(payload, payloadBytes);
        return;
      case BACKEND.errorResponse:
        this.#reply.error(payload, payloadBytes);
        return;
      case BACKEND.parameterStatus: {
        const { name, value } = parseParameterStatus(payload);
        this.backend.parameters.set(name, value);
        return;
      }
      case BACKEND.notificationResponse:
        if (this.#notifications.length < NOTIFICATIONS_MAX) {
          this.#notifications.push(encodeFrame(type, payload));
        }
        return;
      case BACKEND.readyForQuery:
        this.#ready();
        return;
      default:
    }
  }

  #ready(): void {
    const exchange = this.#exchange;
    if (exchange === null) {
      this.#die('the server answered what it was not asked');
      this.#socket.destroy();
      return;
    }
    exchange.replies.push(this.#reply.take());
    if (exchange.replies.length < exchange.wanted) return;
    this.#exchange = null;
    this.#state = 'idle';
    exchange.resolve(exchange.replies);
  }

  #die(reason: string): void {
    if (this.#state === 'dead' || this.#state === 'taken') return;
    const { sqlState } = this.#reply;
    this.#state = 'dead';
    const exchange = this.#exchange;
    this.#exchange = null;
    exchange?.reject(
      new UnderstudyError('warm-failed', `the connection on the new side was lost: ${reason}`, {
        details: sqlState === null ? {} : { sqlState },
      }),
    );
  }
}
