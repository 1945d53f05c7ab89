/**
 * The keys by which clients cancel their statements. They are the proxy's own: a server's would change when a session
 * moves, and would let its holder past the proxy.
 */
import { randomBytes } from 'node:crypto';
import { sameSecret } from '../wire/postgres/scram.js';

export interface CancelKey {
  /** Not the id of any process; unique among the keys given out. */
  readonly processId: number;
  readonly secret: Buffer;
}

/** As PostgreSQL gives out: 4 bytes before protocol 3.2, 32 from then on. */
const SECRET_BYTES = 4;
const LONG_SECRET_BYTES = 32;

export class CancelKeys<Holder extends object> {
  readonly #holders = new Map<number, { readonly holder: Holder; readonly secret: Buffer }>();
  readonly #idOf = new WeakMap<Holder, number>();

  /** `protocolMinor`: as agreed with the client. */
  issue(holder: Holder, protocolMinor: number): CancelKey {
    let processId = randomBytes(4).readUInt32BE() >>> 1;
    while (this.#holders.has(processId)) processId = (processId + 1) & 0x7fff_ffff;
    const secret = randomBytes(protocolMinor >= 2 ? LONG_SECRET_BYTES : SECRET_BYTES);
    this.#holders.set(processId, { holder, secret });
    this.#idOf.set(holder, processId);
    return { processId, secret };
  }

  /** Another goes on with the same client. */
  hand(from: Holder, to: Holder): void {
    const processId = this.#idOf.get(from);
    const entry = processId === undefined ? undefined : this.#holders.get(processId);
    if (processId === undefined || entry === undefined) return;
    this.#idOf.delete(from);
    this.#holders.set(processId, { holder: to, secret: entry.secret });
    this.#idOf.set(to, processId);
  }

  release(holder: Holder): void {
    const processId = this.#idOf.get(holder);
    if (processId !== undefined) this.#holders.delete(processId);
  }

  /** Undefined for a wrong key, which PostgreSQL meets with silence. */
  find(processId: number, secret: Buffer): Holder | undefined {
    const entry = this.#holders.get(processId);
    return entry !== undefined && sameSecret(entry.secret, secret) ? entry.holder : undefined;
  }
}
