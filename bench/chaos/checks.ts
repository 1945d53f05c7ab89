/**
 * What must be so after each act and at the end of a run, asked of the databases themselves. Nothing here trusts what
 * Understudy says: its status is one of the things that are compared.
 */
import type { StatusReport } from '../../src/admin/control.js';
import {
  auditBank,
  auditLedger,
  auditRegisters,
  type AuditFinding,
  type Outcome,
  type Transfer,
} from './audit.js';
import { attemptsOf, type History } from './history.js';
import { ACCOUNTS, BALANCE, NOTE, TABLES } from './schema.js';
import { SERVER_SIDES, type ServerSide, type Stage } from './stage.js';
import { Connection, outcomeOf } from './workers.js';

export interface Finding {
  readonly problem: string;
  readonly detail: string;
}

export const finding = (problem: string, detail: string): Finding => ({ problem, detail });

/** Polls; false where it did not come true in time. */
export async function comesTrue(
  condition: () => boolean | Promise<boolean>,
  timeoutMs: number,
): Promise<boolean> {
  const deadline = performance.now() + timeoutMs;
  for (let waitMs = 20; !(await condition()); waitMs = Math.min(waitMs * 1.5, 200)) {
    if (performance.now() > deadline) return false;
    await new Promise((resolve) => setTimeout(resolve, waitMs));
  }
  return true;
}

/** The sides that take a write past the proxy, each tried with a real one, which counts for the ledger's audit. */
export async function writableSides(
  stage: Stage,
  database: string,
  history: History,
): Promise<readonly ServerSide[]> {
  const writable: ServerSide[] = [];
  for (const side of SERVER_SIDES) {
    const id = history.nextId();
    let outcome: Outcome = 'failed';
    const connection = await Connection.open(stage.directUrl(side, database));
    try {
      await connection.query('INSERT INTO ledger (id, note) VALUES ($1, $2)', [id, NOTE]);
      outcome = 'acknowledged';
      writable.push(side);
    } catch (error) {
      outcome = outcomeOf(error);
    } finally {
      connection.destroy();
    }
    history.ledger.set(id, outcome);
  }
  return writable;
}

/** Of a status at rest: it must agree with what the sides themselves take, and with the journal. */
export async function checkStatus(
  stage: Stage,
  database: string,
  status: StatusReport,
  writable: readonly ServerSide[],
): Promise<readonly Finding[]> {
  const findings: Finding[] = [];
  const leads = writable[0];
  if (status.route?.side !== leads) {
    findings.push(
      finding(
        'status-untrue',
        `route ${status.route?.side ?? 'none'}, but ${leads ?? 'no side'} takes writes`,
      ),
    );
  }
  const { cutover } = status;
  if (cutover === null) return [...findings, finding('status-untrue', 'it tells nothing of the cutover')];
  if (cutover.route.side !== leads) {
    findings.push(
      finding('status-untrue', `cutover.route ${cutover.route.side}, but ${leads ?? 'no side'} takes writes`),
    );
  }
  for (const side of SERVER_SIDES) {
    const expected = side === leads ? 'lowered' : 'raised';
    if (cutover.barriers[side] === expected) continue;
    findings.push(
      finding('status-untrue', `barrier of the ${side} ${cutover.barriers[side]} instead of ${expected}`),
    );
  }
  const journal = await stage.asSuperuser('destination', database, async (client) => {
    const { rows } = await client.query(
      `SELECT r.side, r.epoch::text AS epoch, o.id, o.state,
              (SELECT count(*) FROM understudy.operation WHERE state NOT IN ('done', 'aborted', 'failed'))::text AS open
         FROM understudy.route r LEFT JOIN LATERAL
              (SELECT id, state FROM understudy.operation ORDER BY started_at DESC LIMIT 1) o ON true`,
    );
    return rows[0];
  });
  if (journal === undefined) return [...findings, finding('journal-untrue', 'it holds no route')];
  if (journal['side'] !== leads || Number(journal['epoch']) !== cutover.route.epoch) {
    findings.push(
      finding(
        'journal-untrue',
        `it says ${journal['side']}, epoch ${journal['epoch']}; status ${leads}, ${cutover.route.epoch}`,
      ),
    );
  }
  if (journal['open'] !== '0')
    findings.push(finding('journal-untrue', `${journal['open']} operations are open`));
  if (
    journal['id'] !== null &&
    cutover.last?.id === journal['id'] &&
    cutover.last?.state !== journal['state']
  ) {
    findings.push(
      finding('status-untrue', `last ${cutover.last?.state}, the journal says ${journal['state']}`),
    );
  }
  return findings;
}

/** Slots, publications and triggers of Understudy in the run's databases, as `source slot understudy_x_fwd`. */
export async function readTraces(stage: Stage, database: string): Promise<readonly string[]> {
  const found = await Promise.all(
    SERVER_SIDES.map((side) =>
      stage.asSuperuser(side, database, async (client) => {
        const { rows } = await client.query(`
          SELECT 'slot ' || slot_name AS what FROM pg_replication_slots WHERE database = current_database()
          UNION ALL SELECT 'publication ' || pubname FROM pg_publication
          UNION ALL SELECT DISTINCT 'trigger ' || tgname FROM pg_trigger WHERE tgname LIKE 'understudy%'
          UNION ALL SELECT 'event trigger ' || evtname FROM pg_event_trigger
          UNION ALL SELECT 'prepared transaction ' || gid FROM pg_prepared_xacts WHERE database = current_database()
          UNION ALL SELECT 'schema ' || nspname || COALESCE((SELECT ' with ' || string_agg(what, ', ') FROM (
              SELECT relkind::text || ' ' || relname AS what FROM pg_class WHERE relnamespace = n.oid AND relkind <> 'i'
              UNION ALL SELECT 'function ' || proname FROM pg_proc WHERE pronamespace = n.oid) held), '')
            FROM pg_namespace n WHERE nspname = 'understudy'`);
        return rows.map((row) => `${side} ${row['what'] ?? ''}`);
      }),
    ),
  );
  return found.flat();
}

/** At rest each side has one stream at most, and the source the triggers that tell of changes to its schema. */
export function checkSlots(traces: readonly string[]): readonly Finding[] {
  const allowed =
    /^(source (slot understudy_\w+_fwd|event trigger understudy_(ddl|drop))|destination slot understudy_\w+_rev)$/;
  const odd = traces.filter(
    (trace) => / (slot|event trigger|prepared transaction) /.test(trace) && !allowed.test(trace),
  );
  return odd.length === 0 ? [] : [finding('orphaned', odd.join(', '))];
}

interface Books {
  readonly ledger: readonly { readonly id: number; readonly seq: number }[];
  readonly registers: ReadonlyMap<number, number>;
  readonly balances: ReadonlyMap<number, number>;
  readonly transfers: readonly Transfer[];
}

async function readBooks(stage: Stage, side: ServerSide, database: string): Promise<Books> {
  return await stage.asSuperuser(side, database, async (client) => {
    const rows = async (sql: string): Promise<readonly Record<string, string>[]> =>
      (await client.query(sql)).rows;
    const number = (row: Record<string, string>, name: string): number => Number(row[name]);
    const pairs = async (sql: string): Promise<ReadonlyMap<number, number>> =>
      new Map((await rows(sql)).map((row) => [number(row, 'k'), number(row, 'v')]));
    return {
      ledger: (await rows('SELECT id, seq FROM ledger')).map((row) => ({
        id: number(row, 'id'),
        seq: number(row, 'seq'),
      })),
      registers: await pairs('SELECT key AS k, value AS v FROM register'),
      balances: await pairs('SELECT id AS k, balance AS v FROM account'),
      transfers: (await rows('SELECT id, debit, credit, amount FROM transfer')).map((row) => ({
        id: number(row, 'id'),
        from: number(row, 'debit'),
        to: number(row, 'credit'),
        amount: number(row, 'amount'),
      })),
    };
  });
}

/** What clients were told against what the writable side holds. Once nobody writes any more. */
export async function auditBooks(
  stage: Stage,
  leads: ServerSide,
  database: string,
  history: History,
): Promise<readonly AuditFinding[]> {
  const books = await readBooks(stage, leads, database);
  const seqs = new Set(books.ledger.map(({ seq }) => seq));
  return [
    ...auditLedger(
      'row',
      attemptsOf(history.ledger),
      books.ledger.map(({ id }) => id),
    ),
    ...(seqs.size === books.ledger.length
      ? []
      : [{ problem: 'duplicated' as const, detail: 'values of the ledger’s sequence' }]),
    ...auditRegisters(history.registers, 0, books.registers, history.nowMs()),
    ...auditBank(
      { accounts: ACCOUNTS, initial: BALANCE },
      history.sums,
      attemptsOf(history.transfers),
      books.transfers,
      books.balances,
    ),
  ];
}

/** Waits until both sides hold the same rows; names the tables that don't come to it. */
export async function checkConverged(
  stage: Stage,
  database: string,
  timeoutMs: number,
): Promise<readonly Finding[]> {
  let differing: readonly string[] = [];
  const equal = await comesTrue(async () => {
    const [source, destination] = await Promise.all(
      SERVER_SIDES.map((side) => readHashes(stage, side, database)),
    );
    differing = TABLES.filter((table) => source?.get(table) !== destination?.get(table));
    return differing.length === 0;
  }, timeoutMs);
  return equal ? [] : [finding('sides-differ', `tables ${differing.join(', ')}`)];
}

async function readHashes(
  stage: Stage,
  side: ServerSide,
  database: string,
): Promise<ReadonlyMap<string, string>> {
  return await stage.asSuperuser(side, database, async (client) => {
    const sql = TABLES.map(
      (table) =>
        `SELECT '${table}' AS k, count(*) || md5(string_agg(t::text, ',' ORDER BY t::text)) AS v FROM ${table} t`,
    ).join(' UNION ALL ');
    const { rows } = await client.query(sql);
    return new Map(rows.map((row) => [row['k'] ?? '', row['v'] ?? '']));
  });
}
