/** What a client costs that is connected and does nothing: many are opened, and the proxy's growth is divided. */
import pg from 'pg';
import { memoryOf } from '../support/process-usage.js';
import type { Bench } from './load.js';
import type { Target } from './targets.js';

export interface IdleFigures {
  readonly target: string;
  readonly clients: number;
  readonly bytesPerClient: number;
}

const AT_ONCE = 20;
/** Opened and closed before, so that what a process needs once isn't laid on the clients. */
const FIRST = 100;
const SETTLE_MS = 1500;

/** Targets without a process of their own, and systems without /proc, are left out. */
export async function measureIdleClients(bench: Bench): Promise<readonly IdleFigures[]> {
  const all: IdleFigures[] = [];
  for (const target of bench.targets) {
    const bytes = target.pid === null ? null : await growth(bench, target, target.pid);
    if (bytes === null) continue;
    all.push({
      target: target.name,
      clients: bench.settings.idleClients,
      bytesPerClient: bytes / bench.settings.idleClients,
    });
  }
  return all;
}

async function growth(bench: Bench, target: Target, pid: number): Promise<number | null> {
  await closeAll(await openMany(bench, target, FIRST));
  await settle(bench);
  const before = memoryOf(pid);
  const clients = await openMany(bench, target, bench.settings.idleClients);
  try {
    await settle(bench);
    const after = memoryOf(pid);
    return before === null || after === null ? null : after.residentBytes - before.residentBytes;
  } finally {
    await closeAll(clients);
    // Their server connections end a moment later; the next target needs the room.
    await settle(bench);
  }
}

async function openMany(
  { account, owner }: Bench,
  target: Target,
  count: number,
): Promise<readonly pg.Client[]> {
  const clients: pg.Client[] = [];
  while (clients.length < count) {
    owner.signal.throwIfAborted();
    const next = Array.from({ length: Math.min(AT_ONCE, count - clients.length) }, () => {
      const { host, port } = target.address;
      const client = new pg.Client({ ...account, host, port, ssl: false });
      client.on('error', () => undefined);
      return client;
    });
    try {
      await Promise.all(next.map((client) => client.connect()));
    } catch (error) {
      await closeAll([...clients, ...next]);
      throw new Error(`${target.name}: connection ${clients.length} and following failed`, { cause: error });
    }
    clients.push(...next);
  }
  return clients;
}

async function closeAll(clients: readonly pg.Client[]): Promise<void> {
  await Promise.allSettled(clients.map((client) => client.end()));
}

async function settle({ owner }: Bench): Promise<void> {
  await owner.interruptible(new Promise<void>((resolve) => setTimeout(resolve, SETTLE_MS)));
}
