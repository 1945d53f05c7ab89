/**
 * The clients of a run: each does one statement or transaction after another over its own connection, opens another one
 * whenever it is lost, and writes down what it was told. None retries what it did: an id is tried once.
 */
import pg from 'pg';
import { Chance } from '../../test/support/mutate.js';
import { pipeline } from 'node:stream/promises';
import { Readable, type Writable } from 'node:stream';
import type { Outcome } from './audit.js';
import type { Group } from './arrangement.js';
import type { History } from './history.js';
import { ACCOUNTS, NOTE, PORT, REGISTERS } from './schema.js';

/** A client gives up on an answer then, and its connection with it. Longer than any budget of a cutover here. */
const ANSWER_TIMEOUT_MS = 9_000;
const CONNECT_TIMEOUT_MS = 4_000;
const RECONNECT_PAUSE_MS = 40;

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** What an error says about what was asked for. */
export function outcomeOf(error: unknown): Exclude<Outcome, 'acknowledged'> {
  const { severity, code } = error as { severity?: string; code?: string };
  // Class 08 tells of connections, 40003 that nobody knows; a FATAL may come when a COMMIT was done but not yet answered.
  if (severity !== 'ERROR' || code === undefined) return 'unknown';
  return code.startsWith('08') || code === '40003' ? 'unknown' : 'failed';
}

class TimedOut extends Error {
  readonly code = 'no-answer';
}

async function timed<T>(promise: Promise<T>, ms: number, onTimeout: () => void): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => {
      onTimeout();
      reject(new TimedOut('no answer'));
    }, ms);
  });
  promise.catch(() => undefined);
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** A node-postgres connection that is destroyed, not ended, when something takes too long. */
export class Connection {
  readonly #client: pg.Client;
  #broken = false;

  private constructor(client: pg.Client) {
    this.#client = client;
    client.on('error', () => (this.#broken = true));
    client.on('end', () => (this.#broken = true));
  }

  static async open(url: string, connectTimeoutMs = CONNECT_TIMEOUT_MS): Promise<Connection> {
    const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: connectTimeoutMs });
    const connection = new Connection(client);
    try {
      await timed(client.connect(), connectTimeoutMs + 1000, () => connection.destroy());
    } catch (error) {
      connection.destroy();
      throw error;
    }
    return connection;
  }

  get broken(): boolean {
    return this.#broken;
  }

  query<R extends pg.QueryResultRow = Record<string, string>>(
    query: string | pg.QueryConfig,
    values: readonly unknown[] = [],
    timeoutMs = ANSWER_TIMEOUT_MS,
  ): Promise<pg.QueryResult<R>> {
    const config = typeof query === 'string' ? { text: query } : query;
    const asked = this.#client.query<R>(values.length === 0 ? config : { ...config, values: [...values] });
    return timed(asked, timeoutMs, () => this.destroy());
  }

  /** A COPY of the server's; one that takes too long ends with its connection. */
  stream<S extends pg.Submittable & NodeJS.EventEmitter>(copy: S): S {
    const late = setTimeout(() => this.destroy(), ANSWER_TIMEOUT_MS);
    copy.once('close', () => clearTimeout(late));
    return this.#client.query(copy);
  }

  /** Resolves once the server has taken all of `text`. */
  async copyIn(copy: pg.Submittable & Writable, text: string): Promise<void> {
    const asked = pipeline(Readable.from([text]), this.stream(copy));
    await timed(asked, ANSWER_TIMEOUT_MS, () => this.destroy());
  }

  destroy(): void {
    this.#broken = true;
    const { connection } = this.#client as unknown as { connection: { stream: { destroy: () => void } } };
    connection.stream.destroy();
  }
}

export abstract class Worker {
  readonly name: string;
  protected readonly url: string;
  protected readonly history: History;
  protected readonly chance: Chance;
  readonly #pauseMs: number;
  #running = true;
  #done: Promise<void> | undefined;

  constructor(name: string, url: string, history: History, seed: number, pauseMs: number) {
    this.name = name;
    this.url = url;
    this.history = history;
    this.chance = new Chance(seed);
    this.#pauseMs = pauseMs;
  }

  start(): this {
    this.#done ??= this.#run();
    return this;
  }

  async stop(): Promise<void> {
    this.#running = false;
    await this.#done;
  }

  /** Does one thing; connects where it isn't connected. Throws what went wrong after writing the outcome down. */
  protected abstract act(): Promise<void>;
  protected abstract close(): Promise<void>;

  async #run(): Promise<void> {
    while (this.#running) {
      const calledMs = this.history.nowMs();
      try {
        await this.act();
        this.history.succeeded(this.name, calledMs);
        await sleep(this.#pauseMs / 2 + this.chance.below(this.#pauseMs));
      } catch {
        await sleep(RECONNECT_PAUSE_MS);
      }
    }
    await this.close();
  }

  /** `what`: its way, where it has several. */
  protected failed(doing: 'connect' | 'statement', error: unknown, what?: string): void {
    const { code = 'unnamed', message } = error as { code?: string; message: string };
    const worker = what === undefined ? this.name : `${this.name}, ${what},`;
    this.history.errors.push({ worker, atMs: this.history.nowMs(), doing, code, message });
  }
}

/** Over node-postgres. */
export abstract class PgWorker extends Worker {
  #connection: Connection | undefined;

  protected abstract work(connection: Connection): Promise<void>;

  protected override async act(): Promise<void> {
    if (this.#connection === undefined || this.#connection.broken) {
      try {
        this.#connection = await Connection.open(this.url);
      } catch (error) {
        this.failed('connect', error);
        throw error;
      }
    }
    const connection = this.#connection;
    try {
      await this.work(connection);
    } catch (error) {
      this.failed('statement', error);
      if (outcomeOf(error) === 'unknown') connection.destroy();
      throw error;
    }
  }

  protected override async close(): Promise<void> {
    this.#connection?.destroy();
    await Promise.resolve();
  }
}

export class LedgerWorker extends PgWorker {
  #last: number | undefined;

  protected override async work(connection: Connection): Promise<void> {
    if (this.#last !== undefined && this.chance.once(3)) await this.#readBack(connection, this.#last);
    const id = this.history.nextId();
    this.history.ledger.set(id, 'unknown');
    const text = 'INSERT INTO ledger (id, note) VALUES ($1, $2)';
    try {
      await connection.query(this.chance.once(2) ? { text } : { text, name: 'ledger' }, [id, NOTE]);
      this.history.ledger.set(id, 'acknowledged');
      this.#last = id;
    } catch (error) {
      this.history.ledger.set(id, outcomeOf(error));
      throw error;
    }
  }

  async #readBack(connection: Connection, id: number): Promise<void> {
    const { history } = this;
    const calledMs = history.nowMs();
    const text = `SELECT count(*) AS n, ${PORT} AS port FROM ledger WHERE id = $1`;
    const { rows } = await connection.query({ name: 'back', text }, [id]);
    if (rows[0]?.['n'] === '0') history.notFound.push(id);
    const answeredMs = history.nowMs();
    history.told('ledger', Number(rows[0]?.['port']), 'a row read back', { calledMs, answeredMs });
  }
}

/** Several rows at once: in a transaction, or in one simple query, which is one too. */
export class TransactionLedgerWorker extends PgWorker {
  protected override async work(connection: Connection): Promise<void> {
    const { history } = this;
    const ids = [history.nextId(), history.nextId(), history.nextId()];
    const note = (outcome: Outcome): void => {
      for (const id of ids) history.ledger.set(id, outcome);
    };
    note('unknown');
    const inserts = ids.map((id) => `INSERT INTO ledger (id, note) VALUES (${id}, '${NOTE}')`);
    try {
      if (this.chance.once(2)) {
        await connection.query(inserts.join(';'));
        note('acknowledged');
        return;
      }
      note('failed');
      await connection.query('BEGIN');
      for (const insert of inserts) await connection.query(insert);
      note('unknown');
      const { command } = await connection.query('COMMIT');
      note(command === 'COMMIT' ? 'acknowledged' : 'failed');
    } catch (error) {
      if (history.ledger.get(ids[0] ?? 0) === 'unknown') note(outcomeOf(error));
      if (!connection.broken) await connection.query('ROLLBACK').catch(() => connection.destroy());
      throw error;
    }
  }
}

export class RegisterWorker extends PgWorker {
  protected override async work(connection: Connection): Promise<void> {
    const key = 1 + this.chance.below(REGISTERS);
    const isWrite = this.chance.below(5) < 2;
    const client = Number(this.name.split(' ')[1] ?? 0);
    const value = isWrite ? this.history.nextId() : 0;
    const calledMs = this.history.nowMs();
    const operations = this.history.register(key);
    if (!isWrite) {
      const { rows } = await connection.query('SELECT value FROM register WHERE key = $1', [key]);
      const answeredMs = this.history.nowMs();
      operations.push({ client, kind: 'read', value: Number(rows[0]?.['value']), calledMs, answeredMs });
      return;
    }
    try {
      await connection.query('UPDATE register SET value = $1 WHERE key = $2', [value, key]);
      operations.push({ client, kind: 'write', value, calledMs, answeredMs: this.history.nowMs() });
    } catch (error) {
      const unknown = outcomeOf(error) === 'unknown';
      if (unknown) operations.push({ client, kind: 'write', value, calledMs, answeredMs: null });
      throw error;
    }
  }
}

export class TransferWorker extends PgWorker {
  protected override async work(connection: Connection): Promise<void> {
    const { history, chance } = this;
    const id = history.nextId();
    const from = 1 + chance.below(ACCOUNTS);
    const to = 1 + ((from + chance.below(ACCOUNTS - 1)) % ACCOUNTS);
    const amount = 1 + chance.below(20);
    // Before COMMIT was sent nothing can have happened, whatever the error.
    history.transfers.set(id, 'failed');
    const changes: readonly (readonly [account: number, by: number])[] = [
      [Math.min(from, to), from < to ? -amount : amount],
      [Math.max(from, to), from < to ? amount : -amount],
    ];
    try {
      await connection.query('BEGIN');
      for (const [account, by] of changes) {
        await connection.query('UPDATE account SET balance = balance + $1 WHERE id = $2', [by, account]);
      }
      await connection.query('INSERT INTO transfer (id, debit, credit, amount) VALUES ($1, $2, $3, $4)', [
        id,
        from,
        to,
        amount,
      ]);
      history.transfers.set(id, 'unknown');
      const { command } = await connection.query('COMMIT');
      history.transfers.set(id, command === 'COMMIT' ? 'acknowledged' : 'failed');
    } catch (error) {
      if (history.transfers.get(id) === 'unknown') history.transfers.set(id, outcomeOf(error));
      if (!connection.broken) await connection.query('ROLLBACK').catch(() => connection.destroy());
      throw error;
    }
  }
}

export class SumWorker extends PgWorker {
  protected override async work(connection: Connection): Promise<void> {
    const { history } = this;
    const sum = async (): Promise<void> => {
      const calledMs = history.nowMs();
      const { rows } = await connection.query(`SELECT sum(balance) AS sum, ${PORT} AS port FROM account`);
      history.sums.push(Number(rows[0]?.['sum']));
      const answeredMs = history.nowMs();
      history.told('bank', Number(rows[0]?.['port']), 'a sum', { calledMs, answeredMs });
    };
    if (this.chance.once(2)) {
      await sum();
      return;
    }
    try {
      await connection.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
      await sum();
      await sum();
      await connection.query('COMMIT');
    } catch (error) {
      if (!connection.broken) await connection.query('ROLLBACK').catch(() => connection.destroy());
      throw error;
    }
  }
}

/** A write to each group's tables, which only a ledger's leaves a trace of. */
const PROBES: Readonly<Record<Group, string>> = {
  ledger: 'INSERT INTO ledger (id, note) VALUES ($1, $2)',
  register: 'UPDATE register SET value = value WHERE key = -1',
  decoy: 'UPDATE decoy.register SET value = value WHERE key = -1',
  bank: 'UPDATE account SET balance = balance WHERE id = -1',
};

/** Tries a write past the proxy; of the ledger's the outcome counts as any other. Throws what the server says. */
export async function probe(connection: Connection, group: Group, history: History): Promise<void> {
  if (group !== 'ledger') {
    await connection.query(PROBES[group], [], 3000);
    return;
  }
  const id = history.nextId();
  history.ledger.set(id, 'unknown');
  try {
    await connection.query(PROBES.ledger, [id, NOTE], 3000);
    history.ledger.set(id, 'acknowledged');
  } catch (error) {
    history.ledger.set(id, outcomeOf(error));
    throw error;
  }
}

/** Writes past the proxy, to one server and the other in turn, once for each of `groups`. */
export class DirectWorker extends Worker {
  readonly #urls: readonly (readonly ['source' | 'destination', string])[];
  readonly #groups: readonly (readonly [subset: string, Group])[];
  readonly #connections = new Map<string, Connection>();

  constructor(
    urls: readonly (readonly ['source' | 'destination', string])[],
    history: History,
    seed: number,
    pauseMs: number,
    groups: readonly (readonly [subset: string, Group])[],
  ) {
    super('direct', '', history, seed, pauseMs);
    this.#urls = urls;
    this.#groups = groups;
  }

  protected override async act(): Promise<void> {
    for (const group of this.#groups)
      for (const [side, url] of this.#urls) await this.#write(side, url, group);
  }

  async #write(
    side: 'source' | 'destination',
    url: string,
    [subset, group]: readonly [string, Group],
  ): Promise<void> {
    let connection = this.#connections.get(side);
    if (connection === undefined || connection.broken) {
      try {
        connection = await Connection.open(url, 1000);
      } catch {
        return;
      }
      this.#connections.set(side, connection);
    }
    const calledMs = this.history.nowMs();
    try {
      await probe(connection, group, this.history);
      this.history.probes.push({ subset, side, calledMs, answeredMs: this.history.nowMs() });
    } catch {
      // Refused there, or unknown: the ledger's is written down.
    }
  }

  protected override async close(): Promise<void> {
    for (const connection of this.#connections.values()) connection.destroy();
    await Promise.resolve();
  }
}
