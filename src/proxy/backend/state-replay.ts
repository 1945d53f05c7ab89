/**
 * Gives a fresh connection what a session holds on its old one.
 *
 * In this order, because each step is read under the ones before it:
 * 1. client_encoding, as every later text is in it
 * 2. session authorization
 * 3. settings, then custom settings
 * 4. the role; settings refused before it for lack of privilege are tried once more after it
 * 5. prepared statements, types found by name where their OIDs are this database's own
 * 6. LISTEN
 * 7. timeouts, which must not strike the steps above
 */
import {
  encodeExecuteAll,
  encodeRawBind,
  encodeRawClose,
  encodeRawParse,
} from '../../wire/postgres/raw-text.js';
import {
  FIRST_NORMAL_OID,
  changedSettings,
  compareStates,
  samePreparedStatement,
  type Pin,
  type PreparedStatement,
  type SessionState,
} from '../session/session-state.js';
import type { Reply } from './reply-reader.js';

/** A connection that can be asked and told things by the proxy, and is at rest. */
export interface Askable {
  query(sql: string): Promise<Reply>;
  /** Groups of extended messages, each followed by a Sync; one reply for each. */
  extended(groups: readonly (readonly Buffer[])[]): Promise<Reply[]>;
}

const TIMEOUTS: ReadonlySet<string> = new Set([
  'statement_timeout',
  'lock_timeout',
  'transaction_timeout',
  'idle_session_timeout',
  'idle_in_transaction_session_timeout',
]);

const SET_CONFIG = 'SELECT pg_catalog.set_config($1, $2, false)';
const TEXT_OID = 25;
const INSUFFICIENT_PRIVILEGE = '42501';
const UNDEFINED_OBJECT = '42704';

/** Puts `state` onto a connection that holds nothing yet. Returns what the new side refused, by name. */
export async function replayState(warm: Askable, state: SessionState): Promise<Pin[]> {
  const encoding = state.settings.get('client_encoding');
  const early: [string, string][] = [];
  if (encoding !== undefined) early.push(['client_encoding', encoding]);
  early.push(['session_authorization', state.sessionAuthorization]);
  const settings = [...state.settings].filter(([name]) => name !== 'client_encoding' && !TIMEOUTS.has(name));
  const timeouts = [...state.settings].filter(([name]) => TIMEOUTS.has(name));

  const refused = await setAll(warm, [...early, ...settings, ...state.custom]);
  const atRole = await setAll(warm, [['role', state.role]]);
  const retried = await setAll(
    warm,
    refused
      .filter((item) => item.sqlState === INSUFFICIENT_PRIVILEGE)
      .map(({ name, value }) => [name, value]),
  );
  const pins = [
    ...refused.filter((item) => item.sqlState !== INSUFFICIENT_PRIVILEGE),
    ...atRole,
    ...retried,
  ].map(settingPin);
  pins.push(...(await prepareAll(warm, [...state.prepared.values()])));
  pins.push(...(await listenAll(warm, state.listening)));
  pins.push(...(await setAll(warm, timeouts)).map(settingPin));
  return pins;
}

/**
 * Brings a connection that holds `from` to hold `to`: by the difference where that is mere additions, from the ground
 * up otherwise.
 */
export async function replayChange(warm: Askable, from: SessionState, to: SessionState): Promise<Pin[]> {
  switch (compareStates(from, to)) {
    case 'same':
      return [];
    case 'additions': {
      const refused = await setAll(warm, changedSettings(from, to));
      if (refused.length > 0) return refused.map(settingPin);
      const gone = [...from.prepared.values()].filter(
        (statement) => !samePreparedStatement(statement, to.prepared.get(statement.name)),
      );
      const added = [...to.prepared.values()].filter(
        (statement) => !samePreparedStatement(statement, from.prepared.get(statement.name)),
      );
      await warm.extended(gone.map((statement) => [encodeRawClose(statement.name)]));
      return await prepareAll(warm, added);
    }
    case 'different': {
      const reply = await warm.query('DISCARD ALL');
      if (reply.sqlState !== null) {
        return [{ reason: 'destination-refuses', detail: `DISCARD ALL: ${reply.sqlState}` }];
      }
      return await replayState(warm, to);
    }
  }
}

interface Refused {
  readonly name: string;
  readonly value: string;
  readonly sqlState: string;
}

async function setAll(warm: Askable, settings: readonly (readonly [string, string])[]): Promise<Refused[]> {
  const replies = await warm.extended(
    settings.map(([name, value]) => [
      encodeRawParse('', SET_CONFIG, [TEXT_OID, TEXT_OID]),
      encodeRawBind([name, value]),
      encodeExecuteAll(),
    ]),
  );
  return settings.flatMap(([name, value], index) => {
    const sqlState = replies[index]?.sqlState ?? null;
    return sqlState === null ? [] : [{ name, value, sqlState }];
  });
}

function settingPin({ name, sqlState }: Refused): Pin {
  return sqlState === UNDEFINED_OBJECT && name !== 'role' && name !== 'session_authorization'
    ? { reason: 'unknown-setting', detail: `${name} is not known to the new side` }
    : { reason: 'destination-refuses', detail: `${name}: ${sqlState}` };
}

async function prepareAll(warm: Askable, statements: readonly PreparedStatement[]): Promise<Pin[]> {
  const pins: Pin[] = [];
  const oids = await resolveTypes(warm, statements);
  const sent: PreparedStatement[] = [];
  const groups: Buffer[][] = [];
  for (const [index, statement] of statements.entries()) {
    const types = oids[index];
    if (types === null || types === undefined) {
      pins.push({
        reason: 'destination-refuses',
        detail: `prepared statement ${statement.name}: a parameter type of it does not exist on the new side`,
      });
      continue;
    }
    sent.push(statement);
    groups.push(
      statement.fromSql
        ? [encodeRawParse('', statement.statement, []), encodeRawBind([]), encodeExecuteAll()]
        : [encodeRawParse(statement.name, statement.statement, types)],
    );
  }
  const replies = await warm.extended(groups);
  for (const [index, statement] of sent.entries()) {
    const sqlState = replies[index]?.sqlState ?? null;
    if (sqlState === null) continue;
    pins.push({
      reason: 'destination-refuses',
      detail: `prepared statement ${statement.name}: ${sqlState}`,
    });
  }
  return pins;
}

/** For each statement its parameter types' OIDs on the new side; null where a type is missing there. */
async function resolveTypes(
  warm: Askable,
  statements: readonly PreparedStatement[],
): Promise<(readonly number[] | null)[]> {
  const names = new Set(
    statements.flatMap(({ parameterOids, typeNames }) =>
      parameterOids.flatMap((oid) => (oid < FIRST_NORMAL_OID ? [] : (typeNames.get(oid) ?? []))),
    ),
  );
  const wanted = [...names];
  const replies = await warm.extended(
    wanted.map((name) => [
      encodeRawParse('', 'SELECT pg_catalog.to_regtype($1)::pg_catalog.oid', [TEXT_OID]),
      encodeRawBind([name]),
      encodeExecuteAll(),
    ]),
  );
  const found = new Map(wanted.map((name, index) => [name, replies[index]?.rows[0]?.[0] ?? null]));
  return statements.map(({ parameterOids, typeNames }) => {
    const oids = parameterOids.map((oid) =>
      oid < FIRST_NORMAL_OID ? oid : Number(found.get(typeNames.get(oid) ?? '') ?? Number.NaN),
    );
    return oids.some(Number.isNaN) ? null : oids;
  });
}

async function listenAll(warm: Askable, channels: readonly string[]): Promise<Pin[]> {
  const replies = await warm.extended(
    channels.map((channel) => [
      encodeRawParse('', `LISTEN "${channel.replaceAll('"', '""')}"`, []),
      encodeRawBind([]),
      encodeExecuteAll(),
    ]),
  );
  return channels.flatMap((channel, index): Pin[] => {
    const sqlState = replies[index]?.sqlState ?? null;
    return sqlState === null
      ? []
      : [{ reason: 'destination-refuses', detail: `LISTEN ${channel}: ${sqlState}` }];
  });
}
