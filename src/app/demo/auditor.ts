/**
 * The auditor: asks the servers themselves, over connections of its own, whether what the clients were told is true.
 *
 * It shares nothing with the code under test. It knows the clients' own record ({@link WriteLogSnapshot}), plain SQL
 * and two SQLSTATEs that Understudy documents for refused writes. It runs once the load has stopped:
 *
 *   1. Find the writable side by trying: an UPDATE of no rows, rolled back. Exactly one server must accept it.
 *   2. On every other server each probe must be refused, with the fence's or the guard's SQLSTATE.
 *   3. On the writable one, in one snapshot: every token is counted and held against its state; every register is
 *      compared; every invariant's violations are counted.
 *
 * Anything it can't do (no writable side, two of them) is a fault of its own kind, never an empty success.
 * Writes whose answer never came are counted apart: either outcome is right, twice is not.
 */
import { pg } from '../../core/pg.js';
import { TOKEN_STATES, splitToken, type TokenState, type WriteLogSnapshot } from './write-log.js';

/** SQLSTATEs of a write refused by a fence (source) or a guard (destination); see docs/errors.md. */
const REFUSALS: readonly string[] = ['UFENC', 'UGARD'];

export interface AuditedServer {
  readonly name: string;
  /** Connects directly, not through the proxy, as a role that is no superuser. */
  readonly url: string;
}

/** A query whose single number is how many times the rule is broken; 0 where it holds. */
export interface Invariant {
  readonly name: string;
  readonly sql: string;
}

export interface AuditPlan {
  readonly servers: readonly AuditedServer[];
  /** Tables with a `token` column. */
  readonly tokenTables: readonly string[];
  /** Table (client, value) of the registers. */
  readonly registerTable: string;
  readonly invariants: readonly Invariant[];
  /** Writes that touch no row. The first decides who is writable; all must be refused elsewhere. */
  readonly probes: readonly string[];
}

export interface AuditReport {
  /** Name of the one writable server, or null where none or several were. */
  readonly writable: string | null;
  /** Acknowledged writes: inserts that must stand and deletes that must hold. */
  readonly acknowledged: number;
  readonly found: number;
  readonly lost: number;
  readonly duplicated: number;
  /** Writes whose answer never came, by what became of them. */
  readonly unanswered: { readonly present: number; readonly absent: number };
  readonly registers: { readonly checked: number; readonly wrong: number };
  readonly invariants: readonly { readonly name: string; readonly violations: number }[];
  readonly refusals: readonly {
    readonly server: string;
    readonly probes: number;
    readonly sqlStates: readonly string[];
  }[];
  /** One line per fault, at most {@link FAULTS_LISTED}; empty where everything is right. */
  readonly faults: readonly string[];
  readonly clean: boolean;
}

const FAULTS_LISTED = 20;
const FETCH_ROWS = 50_000;

/** Collects faults, listing only the first few of each run but counting all. */
class Faults {
  readonly lines: string[] = [];
  count = 0;

  add(line: string): void {
    this.count += 1;
    if (this.lines.length < FAULTS_LISTED) this.lines.push(line);
  }
}

/** Audits stopped clients. Rejects only where a server can't be reached or a query of its own fails. */
export async function audit(plan: AuditPlan, log: WriteLogSnapshot): Promise<AuditReport> {
  const faults = new Faults();
  const tried: { server: AuditedServer; states: (string | null)[] }[] = [];
  for (const server of plan.servers) tried.push({ server, states: await tryProbes(server, plan.probes) });
  const writable = tried.filter(({ states }) => states[0] === null);
  if (writable.length !== 1) {
    const names = writable.map(({ server }) => server.name).join(', ');
    faults.add(
      writable.length === 0 ? 'no side accepts writes' : `more than one side accepts writes: ${names}`,
    );
  }
  const refusals = tried
    .filter(({ states }) => states[0] !== null)
    .map(({ server, states }) => {
      states.forEach((state, index) => {
        if (state === null || !REFUSALS.includes(state)) {
          faults.add(`${server.name} answered ${state ?? 'with success'} to: ${plan.probes[index] ?? ''}`);
        }
      });
      const sqlStates = [...new Set(states.map((state) => state ?? '00000'))];
      return { server: server.name, probes: states.length, sqlStates };
    });
  const [only] = writable;
  const leading = writable.length === 1 && only !== undefined ? only.server : null;
  const content = await auditContent(leading, plan, log, faults);
  return {
    writable: leading?.name ?? null,
    ...content,
    refusals,
    faults: faults.lines,
    clean: faults.count === 0,
  };
}

type Content = Pick<
  AuditReport,
  'acknowledged' | 'found' | 'lost' | 'duplicated' | 'unanswered' | 'registers' | 'invariants'
>;

async function auditContent(
  server: AuditedServer | null,
  plan: AuditPlan,
  log: WriteLogSnapshot,
  faults: Faults,
): Promise<Content> {
  if (server === null) {
    // Nobody could be asked: nothing is found, rather than nothing missing.
    const { acknowledged } = judgeTokens(log, new Map(), new Faults());
    return {
      acknowledged,
      found: 0,
      lost: acknowledged,
      duplicated: 0,
      unanswered: { present: 0, absent: 0 },
      registers: { checked: 0, wrong: log.registers.length },
      invariants: [],
    };
  }
  return withClient(server.url, async (client) => {
    await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY');
    const counts = await countTokens(client, plan.tokenTables);
    const tokens = judgeTokens(log, counts, faults);
    const registers = await checkRegisters(client, plan.registerTable, log, faults);
    const invariants: { name: string; violations: number }[] = [];
    for (const { name, sql } of plan.invariants) {
      const { rows } = await client.query<unknown[]>({ text: sql, rowMode: 'array' });
      const violations = Number(rows[0]?.[0] ?? Number.NaN);
      if (violations !== 0) faults.add(`invariant broken: ${name} (${violations})`);
      invariants.push({ name, violations });
    }
    await client.query('COMMIT');
    return { ...tokens, registers, invariants };
  });
}

/** How often each token stands in the tables. */
async function countTokens(client: pg.Client, tables: readonly string[]): Promise<Map<number, number>> {
  const counts = new Map<number, number>();
  const union = tables
    .map((table) => `SELECT token FROM ${table} WHERE token IS NOT NULL`)
    .join(' UNION ALL ');
  await client.query(`DECLARE audit_tokens NO SCROLL CURSOR FOR ${union}`);
  for (;;) {
    const { rows } = await client.query<[string]>({
      text: `FETCH ${FETCH_ROWS} FROM audit_tokens`,
      rowMode: 'array',
    });
    if (rows.length === 0) return counts;
    for (const [text] of rows) counts.set(Number(text), (counts.get(Number(text)) ?? 0) + 1);
  }
}

/** Holds every token's state against its count; then looks for rows with a token that nobody issued. */
export function judgeTokens(
  log: WriteLogSnapshot,
  counts: ReadonlyMap<number, number>,
  faults: { add(line: string): void },
): Omit<Content, 'registers' | 'invariants'> {
  const totals = { acknowledged: 0, found: 0, lost: 0, duplicated: 0, present: 0, absent: 0 };
  const issuedBy = new Map(log.clients.map(({ client, states }) => [client, states]));
  for (const { client, states } of log.clients) {
    const first = client * 2 ** 40;
    states.forEach((code, sequence) => {
      const state = TOKEN_STATES[code] ?? 'none';
      judge(state, counts.get(first + sequence) ?? 0, totals, (fault) =>
        faults.add(`client ${client}, write ${sequence}: ${fault}`),
      );
    });
  }
  for (const token of counts.keys()) {
    const { client, sequence } = splitToken(token);
    if ((issuedBy.get(client)?.[sequence] ?? 0) === 0) {
      totals.duplicated += 1;
      faults.add(`token ${token} stands in the database but was never issued`);
    }
  }
  const { present, absent, ...rest } = totals;
  return { ...rest, unanswered: { present, absent } };
}

interface Totals {
  acknowledged: number;
  found: number;
  lost: number;
  duplicated: number;
  present: number;
  absent: number;
}

function judge(state: TokenState, count: number, totals: Totals, fault: (line: string) => void): void {
  if (count > 1) {
    totals.duplicated += 1;
    fault(`${state}, stands ${count} times`);
  }
  switch (state) {
    case 'acknowledged':
      totals.acknowledged += 1;
      if (count === 0) {
        totals.lost += 1;
        fault('acknowledged, and gone');
      } else if (count === 1) totals.found += 1;
      return;
    case 'erased':
      totals.acknowledged += 1;
      if (count === 0) totals.found += 1;
      else {
        // The acknowledged write that was lost is the delete.
        totals.lost += 1;
        fault('its delete was acknowledged, and it stands again');
      }
      return;
    case 'refused':
      if (count > 0) {
        totals.duplicated += 1;
        fault('refused, and yet it stands');
      }
      return;
    case 'issued':
    case 'erasing':
      if (count > 0) totals.present += 1;
      else totals.absent += 1;
      return;
    case 'none':
      return;
  }
}

async function checkRegisters(
  client: pg.Client,
  table: string,
  log: WriteLogSnapshot,
  faults: Faults,
): Promise<AuditReport['registers']> {
  const { rows } = await client.query<{ client: string | number; value: string }>(
    `SELECT client, value FROM ${table}`,
  );
  const values = new Map(rows.map((row) => [Number(row.client), Number(row.value)]));
  let wrong = 0;
  for (const { client: owner, issued, acknowledged } of log.registers) {
    const value = values.get(owner);
    if (value === acknowledged || value === issued) continue;
    wrong += 1;
    faults.add(`register ${owner}: acknowledged ${acknowledged}, found ${value ?? 'nothing'}`);
  }
  return { checked: log.registers.length, wrong };
}

/** The SQLSTATE each probe is refused with; null where it is accepted. Nothing is changed: no row, and rolled back. */
async function tryProbes(server: AuditedServer, probes: readonly string[]): Promise<(string | null)[]> {
  return withClient(server.url, async (client) => {
    const states: (string | null)[] = [];
    for (const probe of probes) {
      await client.query('BEGIN');
      try {
        await client.query(probe);
        states.push(null);
      } catch (error) {
        states.push(error instanceof pg.DatabaseError ? (error.code ?? 'unknown') : 'connection lost');
      }
      await client.query('ROLLBACK');
    }
    return states;
  });
}

async function withClient<T>(url: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString: url, application_name: 'auditor' });
  client.on('error', () => undefined);
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end().catch(() => undefined);
  }
}
