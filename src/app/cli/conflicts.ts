/** `understudy conflicts`: what was written to the shadow past its guard. */
import type { OperationOptions } from '../../admin/control.js';
import type { ConflictRecord } from '../../core/ports.js';
import type { AdminClient } from '../admin-client.js';
import { EXIT, type ExitCode } from './exit-codes.js';
import { table } from './format.js';
import { operate } from './operate.js';
import type { Terminal } from './terminal.js';

/** Exit code 1 where one is open or unsettled. */
export async function runConflicts(
  terminal: Terminal,
  admin: AdminClient,
  options: Pick<OperationOptions, 'limit'>,
): Promise<ExitCode> {
  const conflicts = (await operate(terminal, admin, 'conflicts', options)) as readonly ConflictRecord[];
  if (conflicts.length === 0) terminal.line('no conflicts: nobody wrote to the shadow past its guard');
  else {
    const rows = conflicts.map((each) => [
      String(each.id),
      each.foundAt,
      each.table,
      each.key ?? '',
      each.kind,
      each.state,
      each.winner ?? '',
      each.reason ?? '',
    ]);
    const header = ['id>', 'found', 'table', 'key', 'kind', 'state', 'winner', 'why'];
    for (const line of table(header, rows)) terminal.line(line);
    terminal.line('both rows of each are in the destination, in understudy.conflict');
  }
  terminal.result(conflicts);
  return conflicts.some(({ state }) => state !== 'settled') ? EXIT.refused : EXIT.ok;
}
