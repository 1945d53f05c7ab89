/**
 * Control connections of the cutover: bounded waits, classified errors.
 *
 * Invariants:
 * - Statements on one session run one after another, in the order they were asked for.
 * - A session whose connection broke, or whose answer didn't come in time, is dead for good: its transaction, if any,
 *   ends on the server, and nothing is ever sent on it again.
 */
import { pg } from '../core/pg.js';
import type { DatabaseEndpoint, Side } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import { connectControl } from '../core/postgres.js';

/** One row, everything as text. */
export type Row = Readonly<Record<string, string | null>>;

export interface Rows {
  readonly rows: readonly Row[];
  /** Rows returned or changed. */
  readonly count: number;
  /** The command tag's word: `COMMIT`, `ROLLBACK`, `UPDATE`. */
  readonly command: string;
}

/** SQLSTATE of a statement that failed on a server, or undefined for anything else. */
export function sqlStateOf(error: unknown): string | undefined {
  if (error instanceof pg.DatabaseError) return error.code;
  return error instanceof UnderstudyError && error.cause !== undefined ? sqlStateOf(error.cause) : undefined;
}

/** Opens sessions and can end all of them at once. */
export class Connections {
  readonly #endpoints: Readonly<Record<Side, DatabaseEndpoint>>;
  readonly #connectTimeoutMs: number;
  readonly #open = new Set<Session>();
  #destroyed = false;

  constructor(endpoints: Readonly<Record<Side, DatabaseEndpoint>>, connectTimeoutMs: number) {
    this.#endpoints = endpoints;
    this.#connectTimeoutMs = connectTimeoutMs;
  }

  /** Throws `source-unreachable` / `destination-unreachable`; `cancelled` once {@link destroy} was called. */
  async open(
    side: Side,
    purpose: string,
    options: { settings?: Readonly<Record<string, string>>; answerTimeoutMs?: number } = {},
  ): Promise<Session> {
    const client = await connectControl(side, this.#endpoints[side], {
      purpose,
      connectTimeoutMs: this.#connectTimeoutMs,
      ...(options.settings === undefined ? {} : { settings: options.settings }),
    });
    const session = new Session(side, client, options.answerTimeoutMs ?? 0);
    if (this.#destroyed) {
      session.destroy();
      throw new UnderstudyError('cancelled', `the connection to the ${side} is not wanted any more`);
    }
    this.#open.add(session);
    client.on('end', () => this.#open.delete(session));
    return session;
  }

  /** Ends all politely, the busy ones too once their statement is answered. */
  async end(): Promise<void> {
    await Promise.all([...this.#open].map((session) => session.end()));
  }

  /** Cuts every connection without a word, as a dying process does. */
  destroy(): void {
    this.#destroyed = true;
    for (const session of this.#open) session.destroy();
    this.#open.clear();
  }
}

export class Session {
  readonly side: Side;
  /** For readers that want pg's own client. Not to be used while {@link run} is under way. */
  readonly client: pg.Client;
  readonly #answerTimeoutMs: number;
  #dead = false;
  #tail: Promise<unknown> = Promise.resolve();

  /** `answerTimeoutMs`: a statement unanswered for that long kills the session; 0 waits for ever. */
  constructor(side: Side, client: pg.Client, answerTimeoutMs: number) {
    this.side = side;
    this.client = client;
    this.#answerTimeoutMs = answerTimeoutMs;
    client.on('error', () => (this.#dead = true));
    client.on('end', () => (this.#dead = true));
  }

  get dead(): boolean {
    return this.#dead;
  }

  /** Runs one statement with parameters. Throws as {@link batch}. */
  async run(sql: string, values: readonly (string | number | boolean | null)[] = []): Promise<Rows> {
    return (await this.#send({ text: sql, values: [...values] }))[0] ?? { rows: [], count: 0, command: '' };
  }

  /**
   * Runs several statements in one message, without parameters; one result each.
   * Throws `…-unreachable` where the connection broke or no answer came in time, else `…-query-failed` with the
   * SQLSTATE in `details.sqlState`.
   */
  batch(sql: readonly string[], answerTimeoutMs = this.#answerTimeoutMs): Promise<readonly Rows[]> {
    return this.#send({ text: sql.join(';\n') }, answerTimeoutMs);
  }

  /**
   * Has pg's own client do something; not while a statement is under way. Throws `…-unreachable` where the connection broke
   * meanwhile, else as `act`.
   */
  async lend<T>(act: (client: pg.Client) => Promise<T>): Promise<T> {
    try {
      return await act(this.client);
    } catch (error) {
      throw this.#dead
        ? this.#unreachable(error instanceof Error ? error.message : String(error), error)
        : error;
    }
  }

  #send(query: pg.QueryConfig, answerTimeoutMs = this.#answerTimeoutMs): Promise<readonly Rows[]> {
    const answer = this.#tail.then(() => this.#exchange(query, answerTimeoutMs));
    this.#tail = answer.catch(() => undefined);
    return answer;
  }

  async #exchange(query: pg.QueryConfig, answerTimeoutMs: number): Promise<readonly Rows[]> {
    if (this.#dead) throw this.#unreachable('the connection is gone');
    const timer = answerTimeoutMs > 0 ? setTimeout(() => this.destroy(), answerTimeoutMs) : undefined;
    try {
      // pg types a message of several statements as one result; it is an array of them.
      const answer = (await this.client.query(query)) as pg.QueryResult<Row> | readonly pg.QueryResult<Row>[];
      const results = Array.isArray(answer)
        ? (answer as readonly pg.QueryResult<Row>[])
        : [answer as pg.QueryResult<Row>];
      return results.map(({ rows, rowCount, command }) => ({
        rows,
        count: rowCount ?? 0,
        command: command ?? '',
      }));
    } catch (error) {
      throw this.#classify(error);
    } finally {
      clearTimeout(timer);
    }
  }

  #classify(error: unknown): UnderstudyError {
    const reason = error instanceof Error ? error.message : String(error);
    const fatal = error instanceof pg.DatabaseError && /^(57P0|08|25P03)/.test(error.code ?? '');
    if (fatal || !(error instanceof pg.DatabaseError)) {
      this.destroy();
      return this.#unreachable(reason, error);
    }
    const code = this.side === 'source' ? 'source-query-failed' : 'destination-query-failed';
    return new UnderstudyError(code, `${this.side}: ${reason}`, {
      cause: error,
      details: { sqlState: error.code },
    });
  }

  #unreachable(reason: string, cause?: unknown): UnderstudyError {
    const code = this.side === 'source' ? 'source-unreachable' : 'destination-unreachable';
    return new UnderstudyError(code, `${this.side}: ${reason}`, { cause });
  }

  /** Ends politely; a session that is dead already stays so. */
  async end(): Promise<void> {
    if (this.#dead) return;
    this.#dead = true;
    await this.client.end().catch(() => undefined);
  }

  /** Cuts the connection: a transaction open on it is rolled back by the server. */
  destroy(): void {
    this.#dead = true;
    this.client.connection.stream.destroy();
  }
}
