/**
 * What must be so after each act and at the end of a run, asked of the databases themselves. Nothing here trusts what
 * Understudy says: its status is one of the things that are compared.
 */
import type { StatusReport } from '../../src/admin/control.js';
import { auditBank, auditLedger, auditRegisters, type AuditFinding, type Transfer } from './audit.js';
import { attemptsOf, type History } from './history.js';
import type { Arrangement, Group } from './arrangement.js';
import { ACCOUNTS, BALANCE, REGISTERS, TABLES } from './schema.js';
import { SERVER_SIDES, type ServerSide, type Stage } from './stage.js';
import { Connection, probe } from './workers.js';

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

/** By subset, the sides that take a write past the proxy, each tried with a real one. */
export type Writable = ReadonlyMap<string, readonly ServerSide[]>;

export async function writableSides(stage: Stage, database: string, history: History): Promise<Writable> {
  const { subsets } = history.arrangement;
  const writable = new Map<string, ServerSide[]>(subsets.map((subset) => [subset, []]));
  for (const side of SERVER_SIDES) {
    const connection = await Connection.open(stage.directUrl(side, database));
    for (const [subset, group] of probedGroups(history.arrangement)) {
      await probe(connection, group, history).then(
        () => writable.get(subset)?.push(side),
        () => undefined,
      );
    }
    connection.destroy();
  }
  return writable;
}

/** Of each subset one group of tables. */
export function probedGroups({ subsets, of }: Arrangement): readonly (readonly [subset: string, Group])[] {
  const groups: readonly Group[] = ['ledger', 'register', 'bank', 'decoy'];
  return subsets.flatMap((subset) => {
    const group = groups.find((each) => of[each] === subset);
    return group === undefined ? [] : [[subset, group] as const];
  });
}

/** Of a status at rest: it must agree with what the sides themselves take, and with the journal. */
export async function checkStatus(
  stage: Stage,
  database: string,
  status: StatusReport,
  writable: Writable,
): Promise<readonly Finding[]> {
  const { cutover } = status;
  if (cutover === null) return [finding('status-untrue', 'it tells nothing of the cutover')];
  const findings: Finding[] = [];
  const sides = new Set([...writable.values()].map(([leads]) => leads));
  // The source, where it still leads something.
  const whole = sides.has('source') ? 'source' : 'destination';
  for (const [what, side] of [
    ['route', status.route?.side],
    ['cutover.route', cutover.route.side],
  ] as const) {
    if (side !== whole)
      findings.push(
        finding('status-untrue', `${what} ${side ?? 'none'}, but ${[...sides].join(', ')} takes writes`),
      );
  }
  if (writable.size > 1 && status.proxy.armed !== sides.size > 1) {
    findings.push(
      finding('status-untrue', `armed ${status.proxy.armed} with ${sides.size} sides taking writes`),
    );
  }
  for (const [subset, [leads]] of writable) {
    const own = writable.size === 1 ? cutover : cutover.subsets?.find((each) => each.subset === subset);
    if (own === undefined) findings.push(finding('status-untrue', `it tells nothing of ${subset}`));
    else
      findings.push(
        ...(await checkSubset(stage, database, { subset, leads, several: writable.size > 1 }, own)),
      );
  }
  return findings;
}

type Told = Pick<NonNullable<StatusReport['cutover']>, 'route' | 'barriers' | 'last'>;

async function checkSubset(
  stage: Stage,
  database: string,
  {
    subset,
    leads,
    several,
  }: { readonly subset: string; readonly leads: ServerSide | undefined; readonly several: boolean },
  { route, barriers, last }: Told,
): Promise<readonly Finding[]> {
  const findings: Finding[] = [];
  if (route.side !== leads) {
    findings.push(
      finding('status-untrue', `${subset}: route ${route.side}, but ${leads ?? 'no side'} takes writes`),
    );
  }
  for (const side of SERVER_SIDES) {
    const expected = side === leads ? 'lowered' : 'raised';
    // One of several that was never moved needs no barrier on the side that leads.
    const fitting = barriers[side] === expected || (several && side === leads && barriers[side] === 'absent');
    if (fitting) continue;
    findings.push(
      finding('status-untrue', `${subset}: barrier of the ${side} ${barriers[side]} instead of ${expected}`),
    );
  }
  const journal = await stage.asSuperuser('destination', database, async (client) => {
    const { rows } = await client.query(
      `SELECT r.side, r.epoch::text AS epoch, o.id, o.state, (SELECT count(*) FROM understudy.operation
                WHERE subset = $1 AND state NOT IN ('done', 'aborted', 'failed'))::text AS open
         FROM understudy.route r LEFT JOIN LATERAL
              (SELECT id, state FROM understudy.operation WHERE subset = $1
                ORDER BY started_at DESC LIMIT 1) o ON true
        WHERE r.subset = $1`,
      [subset],
    );
    return rows[0];
  });
  if (journal === undefined)
    return [...findings, finding('journal-untrue', `it holds no route of ${subset}`)];
  if (journal['side'] !== leads || Number(journal['epoch']) !== route.epoch) {
    findings.push(
      finding(
        'journal-untrue',
        `${subset}: it says ${journal['side']}, epoch ${journal['epoch']}; status ${leads}, ${route.epoch}`,
      ),
    );
  }
  if (journal['open'] !== '0')
    findings.push(finding('journal-untrue', `${subset}: ${journal['open']} operations are open`));
  if (journal['id'] !== null && last?.id === journal['id'] && last?.state !== journal['state']) {
    findings.push(
      finding('status-untrue', `${subset}: last ${last?.state}, the journal says ${journal['state']}`),
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

/** At rest each side has one stream at most, and the triggers that tell of changes to its schema. */
export function checkSlots(traces: readonly string[]): readonly Finding[] {
  const allowed =
    /^(source slot understudy_\w+_fwd|destination slot understudy_\w+_rev|\w+ event trigger understudy_(ddl|drop|rewrite))$/;
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

/** Each group's from the side that leads it. */
async function readBooks(
  stage: Stage,
  leads: (group: Group) => ServerSide,
  database: string,
): Promise<Books> {
  const rows = (group: Group, sql: string): Promise<readonly Record<string, string>[]> =>
    stage.asSuperuser(leads(group), database, async (client) => (await client.query(sql)).rows);
  const number = (row: Record<string, string>, name: string): number => Number(row[name]);
  const pairs = async (group: Group, sql: string): Promise<readonly (readonly [number, number])[]> =>
    (await rows(group, sql)).map((row) => [number(row, 'k'), number(row, 'v')]);
  const register = await pairs('register', 'SELECT key AS k, value AS v FROM register');
  const decoy = await pairs('decoy', `SELECT key + ${REGISTERS} AS k, value AS v FROM decoy.register`);
  const transfers = await rows('bank', 'SELECT id, debit, credit, amount FROM transfer');
  return {
    ledger: (await rows('ledger', 'SELECT id, seq FROM ledger')).map((row) => ({
      id: number(row, 'id'),
      seq: number(row, 'seq'),
    })),
    registers: new Map([...register, ...decoy]),
    balances: new Map(await pairs('bank', 'SELECT id AS k, balance AS v FROM account')),
    transfers: transfers.map((row) => ({
      id: number(row, 'id'),
      from: number(row, 'debit'),
      to: number(row, 'credit'),
      amount: number(row, 'amount'),
    })),
  };
}

/** What clients were told against what the writable sides hold. Once nobody writes any more. */
export async function auditBooks(
  stage: Stage,
  leads: (group: Group) => ServerSide,
  database: string,
  history: History,
): Promise<readonly AuditFinding[]> {
  const books = await readBooks(stage, leads, database);
  const seqs = new Set(books.ledger.map(({ seq }) => seq));
  const { notFound } = history;
  return [
    ...(notFound.length === 0
      ? []
      : [{ problem: 'stale-read' as const, detail: `rows not found: ${notFound.join(', ')}` }]),
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
