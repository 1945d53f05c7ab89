/**
 * What stands between two databases and a switch: `understudy check` shows it all, a cutover's preflight stops at the
 * blockers. Reads only; no effect that a client could see.
 */
import type pg from 'pg';
import type { Finding, Side } from '../../core/ports.js';
import { UnderstudyError } from '../../core/errors.js';
import { readMethod } from '../follow/records.js';
import { byMethod } from './preflight-method.js';
import { inspectFormat, inspectNames, type FormatPreflightSettings } from '../format/preflight.js';
import { inspectObjects } from './preflight-objects.js';
import { inspectDifferences } from './preflight-pair.js';
import { inspectStatements } from './preflight-statements.js';
import { inspectServer, type FindingOf, type InspectedServer } from './preflight-server.js';

export interface PreflightSettings extends FormatPreflightSettings {
  /** The migration's id: slots and publications named `understudy_<id>_…` are ours. */
  readonly migrationId: string;
  /** check: before anything is set up. cutover: what would stop a switch now is a blocker. */
  readonly purpose: 'check' | 'cutover';
  /** Connections the destination must have free beyond what the source's clients use now. Default 5. */
  readonly connectionReserve?: number;
}

const CONNECTION_RESERVE = 5;

const SEVERITY_ORDER: Readonly<Record<Finding['severity'], number>> = { blocker: 0, warning: 1, info: 2 };

/** Blockers first; otherwise in the order they were found. */
function sorted(findings: readonly Finding[]): readonly Finding[] {
  return [...findings].sort((a, b) => SEVERITY_ORDER[a.severity] - SEVERITY_ORDER[b.severity]);
}

/** An account that may not look is told so, instead of failing the whole inspection. */
async function attempt<T extends FindingOf>(
  what: string,
  inspect: () => Promise<readonly T[]>,
): Promise<readonly (T | FindingOf)[]> {
  try {
    return await inspect();
  } catch (error) {
    const cause = error instanceof UnderstudyError ? error.cause : error;
    if ((cause as { code?: unknown } | null)?.code !== '42501') throw error;
    return [
      {
        severity: 'warning',
        check: 'not-inspected',
        object: what,
        message: `Understudy’s account may not read what it takes to inspect ${what}: ${(cause as Error).message}.`,
        advice: 'Grant it pg_monitor and pg_read_all_settings, or inspect with a superuser’s account.',
      },
    ];
  }
}

function onSide(side: Side, findings: readonly FindingOf[]): readonly Finding[] {
  return findings.map((finding) => ({ side, ...finding }));
}

function serverOf(client: pg.Client, side: Side, settings: PreflightSettings): InspectedServer {
  return { client, side, migrationId: settings.migrationId, purpose: settings.purpose };
}

/**
 * What is wrong, or worth knowing, with the source alone. `source` is a control connection.
 * Throws `source-query-failed` where a query fails for another reason than a missing privilege.
 */
export async function inspectSource(
  source: pg.Client,
  settings: PreflightSettings,
): Promise<readonly Finding[]> {
  const server = serverOf(source, 'source', settings);
  return sorted([
    ...onSide('source', await attempt('the source’s server', () => inspectServer(server))),
    ...onSide('source', await attempt('the source’s objects', () => inspectObjects(server))),
    ...(await inspectFormat(source, settings)),
  ]);
}

/** What is wrong, or worth knowing, with the destination alone. As {@link inspectSource}. */
export async function inspectDestination(
  destination: pg.Client,
  settings: PreflightSettings,
): Promise<readonly Finding[]> {
  const server = serverOf(destination, 'destination', settings);
  return sorted(
    onSide('destination', await attempt('the destination’s server', () => inspectServer(server))),
  );
}

/** Both sides, and what differs between them. Blockers first. As {@link inspectSource}. */
export async function inspectPair(
  source: pg.Client,
  destination: pg.Client,
  settings: PreflightSettings,
): Promise<readonly Finding[]> {
  const pair = {
    source,
    destination,
    purpose: settings.purpose,
    connectionReserve: settings.connectionReserve ?? CONNECTION_RESERVE,
  };
  const recorded = await readMethod({ side: 'destination', client: destination }, settings.migrationId);
  const ofSource = await byMethod(source, await inspectSource(source, settings), {
    method: 'log',
    ...settings,
    recorded: recorded?.method ?? null,
  });
  return sorted([
    ...ofSource,
    ...(await inspectDestination(destination, settings)),
    ...(await inspectNames(source, destination, settings.format)),
    ...onSide(
      'destination',
      await attempt('the differences between both sides', () => inspectDifferences(pair)),
    ),
    ...onSide(
      'destination',
      await attempt('the captured statements', () => inspectStatements(source, destination)),
    ),
  ]);
}
