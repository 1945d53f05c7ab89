/**
 * One conversation, played against a server directly or through a proxy, and what the server said in it.
 *
 * Only what must differ is made equal: the cancel key (the proxy has its own), the process id in a notification, and
 * where a conversation makes its own relations, their OIDs.
 */
import type pg from 'pg';
import { until } from '../../support/servers.js';
import { pieceBytes } from '../../support/splitting-relay.js';
import { query, sync } from './frames.js';
import { WireClient, type Login, type Received } from './wire-client.js';

/** What happens beside the client's connection. */
export interface Stage {
  /** A connection of another session to the same database. */
  readonly control: pg.Client;
  readonly client: WireClient;
  /** Of the client's backend. */
  readonly pid: string;
}

export type Step =
  | Buffer
  /** Wait, as a real client would, until that many more messages of a type have come. */
  | { readonly wait: string; readonly times?: number }
  | { readonly act: (stage: Stage) => Promise<unknown> }
  | { readonly close: 'end' | 'destroy' };

export interface Conversation {
  readonly name: string;
  readonly steps: readonly Step[];
  readonly login?: Partial<Login>;
  /** closed: the server ends it, and nothing is said after the steps. */
  readonly ends?: 'open' | 'closed';
  /** It leaves the data otherwise than it found them. */
  readonly dirty?: boolean;
  /** It makes relations, whose OIDs differ each time. */
  readonly makes?: boolean;
  /** The proxy refuses in the server's stead, and has no file, line and routine to tell. */
  readonly refused?: boolean;
  /** Too slow or too large to be cut into single bytes. */
  readonly whole?: boolean;
  /** Asserted of the direct play, so that a table's mistake doesn't pass as equality. */
  readonly expect?: string;
}

export const ready: Step = { wait: 'Z' };
export const readies = (times: number): Step => ({ wait: 'Z', times });
export const waitFor = (wait: string, times = 1): Step => ({ wait, times });

/** How what the client says at once is cut: not at all, between frames, into single bytes and small pieces, or in two. */
export type Cut = 'whole' | 'frames' | 'bytes' | number;

export interface Played {
  readonly messages: readonly string[];
  readonly closed: boolean;
  /** The step that was waited for in vain. */
  readonly stuck: number | null;
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

export interface Table {
  readonly port: number;
  readonly database: string;
  readonly control: pg.Client;
  /** Its backend may be another one by the time a conversation begins. */
  readonly moves?: boolean;
}

/** The role of clients that play. */
export const PLAYER = 'player';

/**
 * A place to play from. Conversations that end well follow each other on one connection, each tidied up after, so that
 * what a proxy got wrong of one shows in the next, and no time goes into logins.
 */
export class Seat {
  readonly table: Table;
  #client: WireClient | null = null;
  #pid = '';
  readonly #pooled: boolean;

  /** `pooled`: each conversation has a connection of its own, as one that pins its client would make it a session's. */
  constructor(table: Table, pooled = false) {
    this.table = table;
    this.#pooled = pooled;
  }

  async play(conversation: Conversation, cut: Cut): Promise<Played> {
    const { login, ends = 'open' } = conversation;
    if (login !== undefined || ends === 'closed') {
      await using client = await this.#connect(login ?? {});
      const pid = client.closed ? '' : await client.aside(BACKEND_PID);
      return await playOn(client, pid, this.table, conversation, cut);
    }
    if (this.#pooled) await this.leave();
    const fresh = this.#client === null;
    const client = (this.#client ??= await this.#connect({}));
    if (fresh || this.table.moves === true) this.#pid = await client.aside(BACKEND_PID);
    client.messages.length = 0;
    client.forget();
    const played = await playOn(client, this.#pid, this.table, conversation, cut);
    if (played.closed || played.stuck !== null) await this.leave();
    return played;
  }

  /** The next conversation begins on a connection of its own. */
  async leave(): Promise<void> {
    await this.#client?.[Symbol.asyncDispose]();
    this.#client = null;
  }

  async #connect(login: Partial<Login>): Promise<WireClient> {
    return await WireClient.connect(this.table.port, {
      user: PLAYER,
      ...login,
      database: login.database ?? this.table.database,
    });
  }
}

const BACKEND_PID = 'SELECT pg_backend_pid()';

/** Whatever state a conversation ended in, the connection goes on to work, or fails alike. */
const TIDY = [sync, query('ROLLBACK'), query('DISCARD ALL')];

async function playOn(
  client: WireClient,
  pid: string,
  { control }: Table,
  conversation: Conversation,
  cut: Cut,
): Promise<Played> {
  const stage: Stage = { control, client, pid };
  const steps: Step[] = [...conversation.steps];
  if (conversation.ends !== 'closed') steps.push(...TIDY, readies(TIDY.length));
  let stuck: number | null = null;
  let batch: Buffer[] = [];
  for (const [index, step] of steps.entries()) {
    if (Buffer.isBuffer(step)) {
      batch.push(step);
      if (index < steps.length - 1) continue;
    }
    await write(client, batch, cut);
    batch = [];
    if (Buffer.isBuffer(step)) continue;
    if ('act' in step) await step.act(stage);
    else if ('close' in step) client.socket[step.close]();
    else if (!(await client.until(step.wait, step.times))) {
      stuck = index;
      break;
    }
  }
  if (conversation.ends === 'closed' && stuck === null && !(await client.untilClosed())) stuck = steps.length;
  return {
    messages: render(client.messages, conversation.makes === true).map((message) =>
      conversation.refused === true ? message.replace(SOURCE_OF_ERROR, '') : message,
    ),
    closed: client.closed,
    stuck,
  };
}

/** File, line and routine of an error. */
const SOURCE_OF_ERROR = /\\00F[^\\]*\\00L\d*\\00R\w*/;

async function write(client: WireClient, frames: readonly Buffer[], cut: Cut): Promise<void> {
  if (frames.length === 0) return;
  const bytes = Buffer.concat(frames);
  for (const piece of cutUp(frames, bytes, cut)) {
    if (client.closed) return;
    client.socket.write(piece);
    await turn();
  }
}

function cutUp(frames: readonly Buffer[], bytes: Buffer, cut: Cut): Buffer[] {
  switch (cut) {
    case 'whole':
      return [bytes];
    case 'frames':
      return frames.flatMap(framesOf);
    case 'bytes': {
      const pieces: Buffer[] = [];
      for (let at = 0; at < bytes.length;) {
        const length = pieceBytes(at);
        pieces.push(bytes.subarray(at, at + length));
        at += length;
      }
      return pieces;
    }
    default: {
      const at = Math.min(cut, bytes.length);
      return [bytes.subarray(0, at), bytes.subarray(at)].filter((piece) => piece.length > 0);
    }
  }
}

/** A step may hold several frames, or bytes that are none. */
function framesOf(bytes: Buffer): Buffer[] {
  const frames: Buffer[] = [];
  for (let at = 0; at < bytes.length;) {
    const length = bytes.length - at >= 5 ? bytes.readUInt32BE(at + 1) + 1 : bytes.length;
    frames.push(bytes.subarray(at, at + Math.max(5, length)));
    at += Math.max(5, length);
  }
  return frames;
}

/** Waits until the client's backend runs something; with `wait`, until it waits for that event. */
export async function untilActive({ control, pid }: Stage, wait = ''): Promise<void> {
  await until(async () => {
    const { rows } = await control.query(
      "SELECT FROM pg_stat_activity WHERE pid = $1 AND state = 'active' AND ($2 = '' OR wait_event = $2)",
      [pid, wait],
    );
    return rows.length === 1;
  });
}

// ---------------------------------------------------------------------------------------------------------------

const FIRST_NORMAL_OID = 16384;

function render(messages: readonly Received[], makes: boolean): string[] {
  const relations = new Map<number, number>();
  return messages.map(({ type, bytes, payload, digest }) => {
    if (payload === null) return `${type} ${bytes} bytes ${digest}`;
    const shown = Buffer.from(payload);
    if (type === 'K') return `K ${shown.length} bytes`;
    if (type === 'A') shown.writeUInt32BE(0, 0);
    if (type === 'T' && makes) numberRelations(shown, relations);
    return `${type} ${printable(shown)}`;
  });
}

/** Replaces the OIDs of relations and types that are the database's own by their order of appearance. */
function numberRelations(payload: Buffer, known: Map<number, number>): void {
  const columns = payload.readUInt16BE(0);
  for (let column = 0, at = 2; column < columns; column++) {
    at = payload.indexOf(0, at) + 1;
    for (const where of [at, at + 6]) {
      const oid = payload.readUInt32BE(where);
      if (oid < FIRST_NORMAL_OID) continue;
      if (!known.has(oid)) known.set(oid, known.size + 1);
      payload.writeUInt32BE(known.get(oid) ?? 0, where);
    }
    at += 18;
  }
}

function printable(payload: Buffer): string {
  return payload
    .toString('latin1')
    .replaceAll(/[^\x20-\x7e]/g, (char) => `\\${char.charCodeAt(0).toString(16).padStart(2, '0')}`);
}
