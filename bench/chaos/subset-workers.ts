/** Clients of runs with several subsets, beside those of all runs. */
import postgres from 'postgres';
import { from as copyFrom } from 'pg-copy-streams';
import type { History } from './history.js';
import { NOTE, REGISTERS, REGISTER_TABLES } from './schema.js';
import { READS, WRITES, answerOf, inTransaction, type RegisterAt } from './ways.js';
import { Connection, PgWorker, Worker, outcomeOf } from './workers.js';

const READ_NAMES = Object.keys(READS);
const WRITE_NAMES = Object.keys(WRITES);
const IDLE_CONNECTIONS = 6;

/** Each thing that it does goes over one of several connections, so that each of them rests for long, over many switches. */
export class WayWorker extends Worker {
  readonly #connections: (Connection | undefined)[];
  readonly #client: number;

  constructor(
    which: { readonly client: number; readonly idle: boolean },
    url: string,
    history: History,
    seed: number,
  ) {
    super(`${which.idle ? 'idle' : 'register'} ${which.client}`, url, history, seed, which.idle ? 60 : 20);
    this.#client = which.client;
    this.#connections = Array.from({ length: which.idle ? IDLE_CONNECTIONS : 1 });
  }

  protected override async act(): Promise<void> {
    const index = this.chance.below(this.#connections.length);
    let connection = this.#connections[index];
    if (connection === undefined || connection.broken) {
      try {
        connection = this.#connections[index] = await Connection.open(this.url);
      } catch (error) {
        this.failed('connect', error);
        throw error;
      }
    }
    const table = this.chance.below(REGISTER_TABLES.length);
    const at = { schema: REGISTER_TABLES[table] ?? 'public', key: 1 + this.chance.below(REGISTERS) };
    const how = this.chance.once(2) ? this.chance.pick(READ_NAMES) : null;
    const write = this.chance.pick(WRITE_NAMES);
    try {
      if (how === null) await this.#write(connection, table, at, write);
      else await this.#read(connection, table, at, how);
    } catch (error) {
      this.failed('statement', error, how === null ? `write ${write}` : `read ${how}`);
      // A search path may have been left behind, too.
      if (outcomeOf(error) === 'unknown' || how === 'by search_path') connection.destroy();
      throw error;
    }
  }

  #about(table: number, { key }: RegisterAt) {
    return this.history.register(table * REGISTERS + key);
  }

  async #read(connection: Connection, table: number, at: RegisterAt, how: string): Promise<void> {
    const { history } = this;
    const calledMs = history.nowMs();
    const { value, port } = answerOf(await READS[how]?.(connection, at));
    const answeredMs = history.nowMs();
    this.#about(table, at).push({ client: this.#client, kind: 'read', value, calledMs, answeredMs });
    history.told(table === 0 ? 'register' : 'decoy', port, `read ${how}`, { calledMs, answeredMs });
  }

  async #write(connection: Connection, table: number, at: RegisterAt, how: string): Promise<void> {
    const { history } = this;
    const value = history.nextId();
    const calledMs = history.nowMs();
    const operations = this.#about(table, at);
    const client = this.#client;
    try {
      await WRITES[how]?.(connection, at, value);
      operations.push({ client, kind: 'write', value, calledMs, answeredMs: history.nowMs() });
    } catch (error) {
      if (outcomeOf(error) === 'unknown')
        operations.push({ client, kind: 'write', value, calledMs, answeredMs: null });
      throw error;
    }
  }

  protected override async close(): Promise<void> {
    for (const connection of this.#connections) connection?.destroy();
    await Promise.resolve();
  }
}

/** Rows by COPY, several at once. */
export class CopyWorker extends PgWorker {
  protected override async work(connection: Connection): Promise<void> {
    const { history } = this;
    const ids = [history.nextId(), history.nextId(), history.nextId()];
    for (const id of ids) history.ledger.set(id, 'unknown');
    try {
      await connection.copyIn(
        copyFrom('COPY ledger (id, note) FROM STDIN'),
        ids.map((id) => `${id}\t${NOTE}\n`).join(''),
      );
      for (const id of ids) history.ledger.set(id, 'acknowledged');
    } catch (error) {
      for (const id of ids) history.ledger.set(id, outcomeOf(error));
      throw error;
    }
  }
}

/** A register is written and a row in the same transaction: of two subsets. */
export class CrossingWorker extends PgWorker {
  protected override async work(connection: Connection): Promise<void> {
    const { history } = this;
    const { of } = history.arrangement;
    const note = (code: string | null, calledMs: number): void => {
      const answeredMs = history.nowMs();
      history.crossings.push({ subsets: [of.register, of.ledger], code, calledMs, answeredMs });
    };
    const startedMs = history.nowMs();
    try {
      await (this.chance.once(2) ? this.#inTransaction(connection) : this.#inStatement(connection));
      note(null, startedMs);
    } catch (error) {
      note((error as { code?: string }).code ?? 'unnamed', startedMs);
      throw error;
    }
  }

  async #inTransaction(connection: Connection): Promise<void> {
    const { history } = this;
    const id = history.nextId();
    const key = 1 + this.chance.below(REGISTERS);
    const insert = { name: 'crossing', text: 'INSERT INTO ledger (id, note) VALUES ($1, $2)' };
    const update = 'UPDATE register SET value = $1 WHERE key = $2';
    const ledgerFirst = this.chance.once(2);
    const calledMs = history.nowMs();
    history.ledger.set(id, 'unknown');
    try {
      await inTransaction(connection, 'BEGIN', async () => {
        if (ledgerFirst) await connection.query(insert, [id, NOTE]);
        await connection.query(update, [id, key]);
        if (!ledgerFirst) await connection.query(insert, [id, NOTE]);
      });
      history.ledger.set(id, 'acknowledged');
      const written = { client: 90, kind: 'write', value: id, calledMs } as const;
      history.register(key).push({ ...written, answeredMs: history.nowMs() });
    } catch (error) {
      const outcome = outcomeOf(error);
      history.ledger.set(id, outcome);
      if (outcome === 'unknown')
        history.register(key).push({ client: 90, kind: 'write', value: id, calledMs, answeredMs: null });
      throw error;
    }
  }

  async #inStatement(connection: Connection): Promise<void> {
    const { history } = this;
    const id = history.nextId();
    history.ledger.set(id, 'unknown');
    try {
      await connection.query(
        'INSERT INTO ledger (id, note) SELECT $1, $2 FROM register WHERE key = 1 AND value IS NOT NULL',
        [id, NOTE],
      );
      history.ledger.set(id, 'acknowledged');
    } catch (error) {
      history.ledger.set(id, outcomeOf(error));
      throw error;
    }
  }
}

/** Statements of both subsets on the way at once, each to be answered for itself, in order. */
export class PipelineWorker extends Worker {
  #sql: postgres.Sql | undefined;

  protected override async act(): Promise<void> {
    this.#sql ??= postgres(this.url, {
      max: 1,
      connect_timeout: 4,
      onnotice: () => undefined,
      fetch_types: false,
    });
    const sql = this.#sql;
    const { history } = this;
    const key = 1 + this.chance.below(REGISTERS);
    const [value, id, calledMs] = [history.nextId(), history.nextId(), history.nowMs()];
    const operations = history.register(key);
    history.ledger.set(id, 'unknown');
    const late = setTimeout(() => void sql.end({ timeout: 0 }), 9_000);
    const settled = await Promise.allSettled([
      sql`UPDATE register SET value = ${value} WHERE key = ${key}`.then(() => history.nowMs()),
      sql`INSERT INTO ledger (id, note) VALUES (${id}, ${NOTE})`.then(() => history.nowMs()),
      sql`SELECT value, current_setting('port') AS port FROM register WHERE key = ${key}`.then((rows) => ({
        row: answerOf(rows[0]),
        answeredMs: history.nowMs(),
      })),
    ]);
    clearTimeout(late);
    const [update, insert, read] = settled;
    const written = { client: 80, kind: 'write', value, calledMs } as const;
    if (update.status === 'fulfilled') operations.push({ ...written, answeredMs: update.value });
    else if (outcomeOf(update.reason) === 'unknown') operations.push({ ...written, answeredMs: null });
    history.ledger.set(id, insert.status === 'fulfilled' ? 'acknowledged' : outcomeOf(insert.reason));
    if (read.status === 'fulfilled') {
      const { row, answeredMs } = read.value;
      operations.push({ client: 81, kind: 'read', value: row.value, calledMs, answeredMs });
      history.told('register', row.port, 'read in a pipeline', { calledMs, answeredMs });
    }
    const failure = settled.find((each) => each.status === 'rejected');
    if (failure?.status !== 'rejected') return;
    this.failed('statement', failure.reason, 'pipeline');
    if (settled.some((each) => each.status === 'rejected' && outcomeOf(each.reason) === 'unknown')) {
      await this.close();
    }
    throw failure.reason;
  }

  protected override async close(): Promise<void> {
    const sql = this.#sql;
    this.#sql = undefined;
    await sql?.end({ timeout: 0 }).catch(() => undefined);
  }
}
