/**
 * A pooled client's socket: why it is not being read, what passed over it, and what its client was told of the server's
 * settings.
 *
 * It is read while no reason against it stands. Once detached nothing more is heard of it, and it stays paused. What it
 * receives is valid during the call only, unless it is kept (socket-feed.ts).
 */
import type net from 'node:net';
import { encodeParameterStatus } from '../../wire/postgres/messages.js';
import type { ClientRecording } from '../session/client-recording.js';
import { feedFrom, type SocketFeed } from '../socket-feed.js';
import { closeWith } from '../socket-reader.js';
import { parameterChanges, type ParameterSet } from './parameter-sets.js';

/** Why a client's socket is not being read; they add up. */
export const BACKEND_FULL = 1;
export const INPUT_FULL = 2;
export const TOO_DEEP = 4;
const CLIENT_FULL = 8;
export const HELD_FULL = 16;

export interface ClientSocketListeners {
  /** Returns whether any of the chunk is needed after that. */
  onData(chunk: Buffer): boolean;
  /** It has taken all it was sent. */
  onDrain(): void;
  onGone(): void;
}

export class ClientSocket {
  readonly socket: net.Socket;
  /** What the client was told of the server's settings. */
  told: ParameterSet;
  bytesFromClient = 0;
  bytesToClient = 0;
  /** Where traffic is recorded. */
  readonly recording: ClientRecording | null;
  readonly #listeners: ClientSocketListeners;
  #feed: SocketFeed | null = null;
  #paused = 0;
  #detached = false;

  constructor(
    socket: net.Socket,
    told: ParameterSet,
    recording: ClientRecording | null,
    listeners: ClientSocketListeners,
  ) {
    this.socket = socket;
    this.told = told;
    this.recording = recording;
    this.#listeners = listeners;
  }

  /** Greets the client with its settings and `rest`, and begins to read; first what it has sent already. */
  start(rest: Buffer, leftover: Buffer): void {
    const { socket } = this;
    socket.on('drain', this.#onDrain);
    socket.on('error', ignore);
    socket.on('close', this.#onGone);
    const parameters = [...this.told.values].map(([name, value]) => encodeParameterStatus(name, value));
    // Not an answer to anything: the recording begins behind it.
    this.#send(Buffer.concat([...parameters, rest]));
    if (socket.destroyed) {
      this.#onGone();
      return;
    }
    if (leftover.length > 0) this.#onData(leftover);
    if (this.#detached) return;
    this.#feed = feedFrom(socket, this.#onData);
    if (this.#detached) this.#feed.stop();
    else if (this.#paused === 0) socket.resume();
  }

  readonly #onData = (chunk: Buffer): void => {
    this.bytesFromClient += chunk.length;
    this.recording?.fromClient(chunk);
    if (this.#listeners.onData(chunk)) this.#feed?.keep();
  };

  readonly #onDrain = (): void => {
    this.resume(CLIENT_FULL);
    this.#listeners.onDrain();
  };

  readonly #onGone = (): void => this.#listeners.onGone();

  /** Some of what was written has not gone out yet, and may alias what was given. */
  get unsent(): boolean {
    return this.socket.writableLength > 0;
  }

  /** False: its client is slow to read, and is itself not read until it has. */
  write(bytes: Buffer): boolean {
    this.recording?.toClient(bytes);
    return this.#send(bytes);
  }

  #send(bytes: Buffer): boolean {
    this.bytesToClient += bytes.length;
    if (this.socket.write(bytes)) return true;
    this.pause(CLIENT_FULL);
    return false;
  }

  /** Tells the client what differs from what it was told. */
  tell(parameters: ParameterSet): void {
    if (this.told === parameters) return;
    const changes = parameterChanges(this.told, parameters);
    this.told = parameters;
    if (changes.length > 0) this.write(changes);
  }

  pause(reason: number): void {
    if (this.#paused === 0) this.socket.pause();
    this.#paused |= reason;
  }

  resume(reason: number): void {
    if ((this.#paused & reason) === 0) return;
    this.#paused &= ~reason;
    if (this.#paused === 0 && !this.#detached) this.socket.resume();
  }

  detach(): void {
    this.#detached = true;
    this.#feed?.stop();
    this.socket.off('drain', this.#onDrain);
    this.socket.off('close', this.#onGone);
  }

  /** `cut`: a message to the client was begun that can't be ended. */
  close(last: Buffer | null, cut: boolean): void {
    this.detach();
    if (cut) this.socket.destroy();
    else closeWith(this.socket, last ?? undefined);
  }
}

function ignore(): void {
  // The close that follows an error is what is acted on.
}
