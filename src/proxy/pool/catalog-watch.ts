/**
 * Keeps what one side's catalogs say of harmless names up to date, by a connection of its own.
 *
 * States: idle · reading · known. Facts are null, so that nothing is shared, until they were read, from the moment a
 * client changes the catalogs until they were read again, and while they can't be read. Changes that don't come through
 * here are found within `sharedCatalogIntervalMs`, by comparing a fingerprint.
 */
import { asUnderstudyError } from '../../core/errors.js';
import { FACTS_QUERY, FINGERPRINT_QUERY, readFacts, type CatalogFacts } from './catalog-facts.js';
import type { PoolContext } from './pool-context.js';
import type { PooledBackend } from './pooled-backend.js';

export class CatalogWatch {
  readonly #context: PoolContext;
  #open: (() => Promise<PooledBackend>) | null = null;
  #connection: PooledBackend | null = null;
  #facts: CatalogFacts | null = null;
  #why = 'the catalogs were not read yet';
  #reading = false;
  /** Changes known of; what was read before the last one is not believed. */
  #changes = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(context: PoolContext) {
    this.#context = context;
  }

  get facts(): CatalogFacts | null {
    return this.#facts;
  }

  /** Why nothing is shared; null where reads are. */
  get obstacle(): string | null {
    return this.#facts === null ? this.#why : this.#facts.obstacle;
  }

  /** Begins, with connections made by `open`. Call again with another maker of them: the last one counts. */
  start(open: () => Promise<PooledBackend>): void {
    this.#open = open;
    if (this.#timer !== undefined) return;
    this.#timer = setInterval(() => this.#look(), this.#context.bounds.sharedCatalogIntervalMs);
    this.#timer.unref();
    this.#look();
  }

  /** A client has changed the catalogs. */
  changed(): void {
    this.#changes += 1;
    this.#forget('the catalogs have changed');
    if (this.#timer !== undefined) this.#look();
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#open = null;
    this.#connection?.close(true);
    this.#connection = null;
    this.#forget('the other side serves');
  }

  #forget(why: string): void {
    this.#facts = null;
    this.#why = why;
  }

  #look(): void {
    if (this.#reading) return;
    this.#reading = true;
    this.#read()
      .catch((error: unknown) => {
        this.#forget('the catalogs can’t be read');
        const { message } = asUnderstudyError(error, 'internal', 'reading the catalogs');
        this.#context.log.warn({ error: message }, 'reads are not shared: the catalogs can’t be read');
        this.#connection?.close(true);
        this.#connection = null;
      })
      .finally(() => {
        this.#reading = false;
      });
  }

  async #read(): Promise<void> {
    for (;;) {
      const changes = this.#changes;
      const connection = await this.#connect();
      if (connection === null) return;
      const fingerprint = await this.#ask(connection, FINGERPRINT_QUERY);
      const print = fingerprint[0]?.[0] ?? '';
      if (this.#facts?.fingerprint !== print) {
        const facts = readFacts(print, await this.#ask(connection, FACTS_QUERY));
        if (changes === this.#changes && this.#timer !== undefined) this.#facts = facts;
      }
      if (changes === this.#changes) return;
    }
  }

  async #connect(): Promise<PooledBackend | null> {
    if (this.#connection?.alive === true) return this.#connection;
    const made = (await this.#open?.()) ?? null;
    if (this.#timer === undefined) {
      made?.close(true);
      return null;
    }
    this.#connection = made;
    return made;
  }

  async #ask(connection: PooledBackend, sql: string): Promise<readonly (readonly (string | null)[])[]> {
    const reply = await connection.query(sql);
    if (reply.sqlState !== null) throw new Error(`the question was answered with ${reply.sqlState}`);
    return reply.rows;
  }
}
