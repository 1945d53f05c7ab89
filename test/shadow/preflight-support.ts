/** What the preflight tests share: inspecting, finding a finding, and doing what its advice says. */
import { randomBytes } from 'node:crypto';
import type pg from 'pg';
import { expect } from 'vitest';
import type { DatabaseEndpoint, Finding, Side } from '../../src/core/ports.js';
import { connectControl } from '../../src/core/postgres.js';
import { inspectPair, inspectSource, type PreflightSettings } from '../../src/shadow/postgres/preflight.js';
import type { DatabasePair } from '../support/servers.js';

export const CHECK: PreflightSettings = { migrationId: 'test', purpose: 'check' };
export const CUTOVER: PreflightSettings = { migrationId: 'test', purpose: 'cutover' };

export function uniqueName(prefix: string): string {
  return `${prefix}_${randomBytes(4).toString('hex')}`;
}

export async function pairFindings(pair: DatabasePair, settings = CHECK): Promise<readonly Finding[]> {
  return inspectPair(pair.onSource, pair.onDestination, settings);
}

export function findingOf(findings: readonly Finding[], check: string, object?: string): Finding | undefined {
  return findings.find(
    (finding) => finding.check === check && (object === undefined || finding.object === object),
  );
}

/** The first complete statement of an advice. */
export function statementOf(finding: Finding | undefined): string {
  return (
    /\b(?:ALTER|CREATE|DROP|GRANT|REINDEX|SELECT|ROLLBACK|REFRESH)\b[^;]*;/.exec(
      finding?.advice ?? '',
    )?.[0] ?? ''
  );
}

/** Runs the statement of the finding's advice and expects the finding gone. */
export async function obeyOnSource(
  client: pg.Client,
  check: string,
  object: string,
  settings = CHECK,
): Promise<void> {
  const finding = findingOf(await inspectSource(client, settings), check, object);
  expect(finding, `${check} of ${object}`).toBeDefined();
  await client.query(statementOf(finding));
  expect(findingOf(await inspectSource(client, settings), check, object)).toBeUndefined();
}

/** A client's session, as an application's: not counted among Understudy's own. */
export async function appSession(side: Side, endpoint: DatabaseEndpoint): Promise<pg.Client> {
  const session = await connectControl(side, endpoint, { purpose: 'test' });
  await session.query(`SET application_name = 'shop'`);
  return session;
}
