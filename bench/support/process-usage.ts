/** What a process costs, from Linux's /proc; null elsewhere, and the tables then leave the column empty. */
import { readFileSync, readdirSync, writeFileSync } from 'node:fs';

/** USER_HZ, in which /proc counts; 100 on every architecture Node runs on. https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html */
const TICKS_PER_SECOND = 100;

/** User and system time of all the process's threads since its start, in seconds. */
export function cpuSecondsOf(pid: number): number | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The second field, the program's name, may hold spaces and parentheses.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const user = Number(fields[11]);
    const system = Number(fields[12]);
    return (user + system) / TICKS_PER_SECOND;
  } catch {
    return null;
  }
}

/** Of a process, all children it has waited for and all it has at present: what a PostgreSQL server has used. */
export function cpuSecondsOfFamily(pid: number): number | null {
  try {
    let ticks = 0;
    for (const name of readdirSync('/proc')) {
      if (!/^\d+$/.test(name)) continue;
      const fields = statOf(name);
      const own = name === String(pid);
      if (fields === null || (!own && fields[1] !== String(pid))) continue;
      ticks += Number(fields[11]) + Number(fields[12]);
      if (own) ticks += Number(fields[13]) + Number(fields[14]);
    }
    return ticks / TICKS_PER_SECOND;
  } catch {
    return null;
  }
}

/** The fields behind the program's name. A process may end while one looks. */
function statOf(pid: string): readonly string[] | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  } catch {
    return null;
  }
}

export interface ProcessMemory {
  readonly residentBytes: number;
  /** Most it ever was, or since {@link resetPeakMemory}. */
  readonly peakBytes: number;
}

export function memoryOf(pid: number): ProcessMemory | null {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    const kilobytes = (name: string): number =>
      Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)?.[1]) * 1024;
    const memory = { residentBytes: kilobytes('VmRSS'), peakBytes: kilobytes('VmHWM') };
    return Number.isFinite(memory.peakBytes) ? memory : null;
  } catch {
    return null;
  }
}

/** Writing 5 to clear_refs lets VmHWM begin anew. False where that is not allowed. */
export function resetPeakMemory(pid: number): boolean {
  try {
    writeFileSync(`/proc/${pid}/clear_refs`, '5');
    return true;
  } catch {
    return false;
  }
}
