/**
 * Prepared statements by what they say: clients that prepare the same text under whatever name share one name at the
 * server, which is made on each connection when first needed there.
 *
 * Two clients share only where their settings are the same: a text is read under search_path and the like.
 */
import type { Decision } from './decisions.js';

/** Begins all names of the pool's own at the server. */
export const SERVER_NAME_PREFIX = '_understudy_';
/** Never prepared: closing it is how CloseComplete is had for nothing. */
export const NEVER_PREPARED = Buffer.from(`${SERVER_NAME_PREFIX}none\0`, 'latin1');

export interface Definition {
  /** Name at the server with its zero byte. A new one where the old has gone stale. */
  serverName: Buffer;
  /** Grows with each new name. */
  generation: number;
  /** What follows the name in Parse: text, zero byte, parameter types. */
  readonly body: Buffer;
  /** The text in `body`. */
  readonly text: Buffer;
  /** Length of the text in `body`. */
  readonly textBytes: number;
  /** Its client has declared a parameter to be of a type of the database's own. */
  readonly declaresOwnTypes: boolean;
  readonly decision: Decision;
}

const DEFINITIONS_MAX = 20_000;
/** Of 8 KB each at most. */
const SEEN_ONCE_MAX = 1000;
const DEFINITION_BYTES_MAX = 64 * 1024 * 1024;

export class Definitions {
  readonly #byKey = new Map<string, Definition>();
  /** Keys of texts that came without a name, once so far. */
  readonly #seenOnce = new Set<string>();
  /** Of all bodies in the table. */
  #bytes = 0;
  #nextName = 1;

  /** `body` is copied. `settings`: what the client has set, in some canonical form. */
  intern(body: Buffer, textBytes: number, settings: string, decision: Decision): Definition {
    const key = `${settings}\0${body.toString('latin1')}`;
    const known = this.#byKey.get(key);
    if (known !== undefined && known.decision === decision) return known;
    const copy = Buffer.from(body);
    const made: Definition = {
      serverName: this.#name(),
      generation: 0,
      body: copy,
      text: copy.subarray(0, textBytes),
      textBytes,
      declaresOwnTypes: declaresOwnTypes(copy, textBytes + 1, copy.length),
      decision,
    };
    this.#bytes += body.length;
    for (const [oldest, definition] of this.#byKey) {
      if (this.#byKey.size < DEFINITIONS_MAX && this.#bytes <= DEFINITION_BYTES_MAX) break;
      // Clients that hold it go on using it.
      this.#byKey.delete(oldest);
      this.#bytes -= definition.body.length;
    }
    const replaced = this.#byKey.get(key);
    if (replaced !== undefined) this.#bytes -= replaced.body.length;
    this.#byKey.set(key, made);
    return made;
  }

  /**
   * As `intern`, of a text that came without a name, under the settings a connection begins with. Null the first time:
   * most of what comes once does not come again.
   */
  repeated(body: Buffer, textBytes: number, decision: Decision): Definition | null {
    const key = `\0${body.toString('latin1')}`;
    const known = this.#byKey.get(key);
    if (known !== undefined && known.decision === decision) return known;
    if (known === undefined && !this.#seenOnce.has(key)) {
      if (this.#seenOnce.size >= SEEN_ONCE_MAX) this.#seenOnce.clear();
      this.#seenOnce.add(key);
      return null;
    }
    this.#seenOnce.delete(key);
    return this.intern(body, textBytes, '', decision);
  }

  /** The server holds a plan under the old name that is of no use any more. */
  renew(definition: Definition): void {
    definition.serverName = this.#name();
    definition.generation += 1;
  }

  #name(): Buffer {
    return Buffer.from(`${SERVER_NAME_PREFIX}${this.#nextName++}\0`, 'latin1');
  }
}

/** The first OID that PostgreSQL's own types don't have. */
const OWN_OID_MIN = 16_384;

/**
 * Whether the parameter types at the end of a Parse, `bytes[start, end)`, hold one of the database's own: reading its
 * values may run anything.
 */
export function declaresOwnTypes(bytes: Buffer, start: number, end: number): boolean {
  for (let at = start + 2; at + 4 <= end; at += 4) {
    if (bytes.readUInt32BE(at) >= OWN_OID_MIN) return true;
  }
  return false;
}

interface Held {
  readonly generation: number;
  readonly serverName: Buffer;
  /** What was known of the catalogs when it was parsed. */
  readonly readUnder: object | null;
  used: number;
}

/** An error's fields with the name of a statement at the server replaced by its client's own, latin1. */
export function inClientsWords(payload: Buffer, serverName: Buffer, name: string): Buffer {
  const own = serverName.toString('latin1', 0, serverName.length - 1);
  return Buffer.from(payload.toString('latin1').replaceAll(`"${own}"`, `"${name}"`), 'latin1');
}

/** The prepared statements of one connection: bounded; the one unused for longest makes room. */
export class PreparedOnServer {
  readonly #most: number;
  readonly #held = new Map<Definition, Held>();
  #uses = 0;

  constructor(most: number) {
    this.#most = most;
  }

  get size(): number {
    return this.#held.size;
  }

  /** `readUnder`: only if it was parsed under these facts; null: whenever it was. */
  has(definition: Definition, readUnder: object | null = null): boolean {
    const held = this.#held.get(definition);
    if (held === undefined || held.generation !== definition.generation) return false;
    if (readUnder !== null && held.readUnder !== readUnder) return false;
    held.used = ++this.#uses;
    return true;
  }

  /** Call when its Parse is sent. Returns the server name that has to be closed to make room, if any. */
  add(definition: Definition, readUnder: object | null = null): Buffer | null {
    const { generation, serverName } = definition;
    const old = this.#held.get(definition);
    let out: Buffer | null = null;
    if (old !== undefined) out = old.serverName;
    else if (this.#held.size >= this.#most) out = this.#evict();
    this.#held.set(definition, { generation, serverName, readUnder, used: ++this.#uses });
    return out;
  }

  /** Its Parse failed. */
  remove(definition: Definition): void {
    this.#held.delete(definition);
  }

  /** DISCARD ALL or DEALLOCATE ALL was run. */
  clear(): void {
    this.#held.clear();
  }

  serverNames(): Buffer[] {
    return [...this.#held.values()].map((held) => held.serverName);
  }

  #evict(): Buffer | null {
    let oldest: Definition | null = null;
    let used = Infinity;
    for (const [definition, held] of this.#held) {
      if (held.used >= used) continue;
      used = held.used;
      oldest = definition;
    }
    if (oldest === null) return null;
    const name = this.#held.get(oldest)?.serverName ?? null;
    this.#held.delete(oldest);
    return name;
  }
}
