/** The reports of several proxies as one. */
import type { HoldReport, PrepareReport, SwitchReport } from '../../core/traffic-ports.js';
import { WHOLE_DATABASE } from '../../core/ports.js';
import type { GateState } from '../../proxy/gate.js';
import type { PoolStatus } from '../../proxy/pool/pool-settings.js';
import type { ProxyStatus } from '../../proxy/proxy-interface.js';

function sum<T>(all: readonly T[], pick: (one: T) => number): number {
  return all.reduce((total, one) => total + pick(one), 0);
}

function union(all: readonly (readonly number[])[]): readonly number[] {
  return [...new Set(all.flat())];
}

export function mergePrepare(reports: readonly PrepareReport[]): PrepareReport {
  return {
    sessions: sum(reports, (report) => report.sessions),
    warm: sum(reports, (report) => report.warm),
    stale: sum(reports, (report) => report.stale),
    blockers: reports.flatMap((report) => report.blockers),
    binaryTypes: union(reports.map((report) => report.binaryTypes ?? [])),
  };
}

export function mergeHold(reports: readonly HoldReport[]): HoldReport {
  return {
    drainMs: Math.max(0, ...reports.map((report) => report.drainMs)),
    refreshMs: Math.max(0, ...reports.map((report) => report.refreshMs)),
    sessions: sum(reports, (report) => report.sessions),
  };
}

export function mergeSwitch(reports: readonly SwitchReport[]): SwitchReport {
  return {
    moved: sum(reports, (report) => report.moved),
    closed: sum(reports, (report) => report.closed),
  };
}

/** Counts that only grow, of processes that have ended. */
export type Counts = Pick<ProxyStatus, 'cancelRequests' | 'bytesFromClients' | 'bytesToClients'> & {
  readonly accepted: number;
  readonly refused: number;
  readonly pinned: ProxyStatus['pinned'];
};

export const NO_COUNTS: Counts = {
  cancelRequests: 0,
  bytesFromClients: 0,
  bytesToClients: 0,
  accepted: 0,
  refused: 0,
  pinned: {},
};

export function addCounts(counts: Counts, status: ProxyStatus): Counts {
  return {
    cancelRequests: counts.cancelRequests + status.cancelRequests,
    bytesFromClients: counts.bytesFromClients + status.bytesFromClients,
    bytesToClients: counts.bytesToClients + status.bytesToClients,
    accepted: counts.accepted + status.connections.accepted,
    refused: counts.refused + status.connections.refused,
    pinned: bothPinned(counts.pinned, status.pinned),
  };
}

function bothPinned(a: ProxyStatus['pinned'], b: ProxyStatus['pinned']): ProxyStatus['pinned'] {
  const pinned: Record<string, number> = { ...a };
  for (const [reason, clients] of Object.entries(b)) pinned[reason] = (pinned[reason] ?? 0) + clients;
  return pinned;
}

/** What the process in charge knows better than any of the others. */
export type FleetOwn = Pick<ProxyStatus, 'state' | 'host' | 'port' | 'route' | 'unavailable'> & {
  readonly workers: NonNullable<ProxyStatus['workers']>;
  readonly gate: GateState;
  /** Connections that wait for a worker. */
  readonly waiting: number;
  readonly past: Counts;
};

export function mergeStatus(all: readonly ProxyStatus[], own: FleetOwn): ProxyStatus {
  const { gate, waiting, past, ...known } = own;
  const counts = all.reduce(addCounts, past);
  const gates = all.map((status) => status.gates[WHOLE_DATABASE]);
  return {
    ...known,
    sessions: sum(all, (status) => status.sessions),
    passedThrough: sum(all, (status) => status.passedThrough),
    bySide: {
      source: sum(all, (status) => status.bySide.source),
      destination: sum(all, (status) => status.bySide.destination),
    },
    gates: {
      [WHOLE_DATABASE]: {
        state: gate,
        held: sum(gates, (one) => one?.held ?? 0),
        waiting: waiting + sum(gates, (one) => one?.waiting ?? 0),
        warm: sum(gates, (one) => one?.warm ?? 0),
      },
    },
    connections: {
      accepted: counts.accepted,
      refused: counts.refused,
      handshaking: sum(all, (status) => status.connections.handshaking),
    },
    cancelRequests: counts.cancelRequests,
    bytesFromClients: counts.bytesFromClients,
    bytesToClients: counts.bytesToClients,
    clients: all.flatMap((status) => status.clients),
    pools: mergePools(all.flatMap((status) => status.pools)),
    pinned: counts.pinned,
    binaryTypes: {
      source: union(all.map((status) => status.binaryTypes.source)),
      destination: union(all.map((status) => status.binaryTypes.destination)),
    },
  };
}

/** Each worker has a pool of its own for a user; they are shown as one. */
function mergePools(pools: readonly PoolStatus[]): readonly PoolStatus[] {
  const merged = new Map<string, PoolStatus>();
  for (const pool of pools) {
    const key = JSON.stringify([pool.mode, pool.side, pool.database, pool.user]);
    const other = merged.get(key);
    merged.set(key, other === undefined ? pool : bothPools(other, pool));
  }
  return [...merged.values()];
}

function bothPools(a: PoolStatus, b: PoolStatus): PoolStatus {
  return {
    ...a,
    clients: a.clients + b.clients,
    active: a.active + b.active,
    idle: a.idle + b.idle,
    opening: a.opening + b.opening,
    counted: a.counted + b.counted,
    waiting: a.waiting + b.waiting,
    shared: {
      connections: a.shared.connections + b.shared.connections,
      depth: a.shared.depth + b.shared.depth,
      statements: a.shared.statements + b.shared.statements,
      sentAgain: a.shared.sentAgain + b.shared.sentAgain,
      refused: a.shared.refused + b.shared.refused,
      obstacle: a.shared.obstacle ?? b.shared.obstacle,
    },
  };
}
