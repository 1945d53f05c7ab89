/** What is written to the target in one go: the changes of whole transactions, and the chunk that ends with them. */
import type { ClosedWindow } from './postgres/chunk-windows.js';
import type { Chunk, ChunkOutcome } from './postgres/chunk.js';
import type { Change, TransactionPart } from './postgres/transactions.js';

/** What becomes of the chunk whose `high` ends a flush. */
export type ChunkEnd = ClosedWindow | { readonly chunk: Chunk; readonly outcome: ChunkOutcome };

export interface Flush {
  readonly parts: readonly TransactionPart[];
  readonly changes: readonly Change[];
  readonly last: TransactionPart;
  readonly chunkEnd: ChunkEnd | null;
}

export interface PassedMark {
  readonly id: string;
  readonly at: bigint;
}
