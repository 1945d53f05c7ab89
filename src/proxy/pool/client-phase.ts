/** The states of a pooled client, and what may follow what; see pooled-client.ts for what being in one means. */

export type PooledPhase =
  'idle' | 'sharing' | 'waiting' | 'linking' | 'linked' | 'settling' | 'answering' | 'closed' | 'pinned';

export const PHASES: Readonly<Record<PooledPhase, readonly PooledPhase[]>> = {
  idle: ['sharing', 'waiting', 'answering', 'closed'],
  sharing: ['idle', 'closed'],
  waiting: ['idle', 'linking', 'closed'],
  linking: ['linked', 'idle', 'closed'],
  linked: ['settling', 'answering', 'idle', 'closed'],
  settling: ['idle', 'pinned', 'closed'],
  answering: ['idle', 'linked', 'closed'],
  closed: [],
  pinned: [],
};
