import { randomBytes } from 'node:crypto';
import { expect, it } from 'vitest';
import { connectControl } from '../../src/core/postgres.js';
import { copyRoles, inspectRoles, readRoles } from '../../src/shadow/postgres/schema/roles.js';
import { databasePair, type DatabasePair } from '../support/servers.js';

interface Names extends AsyncDisposable {
  readonly owner: string;
  readonly group: string;
  readonly login: string;
  readonly stranger: string;
}

/** An owner, a group with a grant, a login in the group, and a login of another database; on the source alone. */
async function rolesOnSource(pair: DatabasePair): Promise<Names> {
  const suffix = randomBytes(4).toString('hex');
  const names = {
    owner: `own_${suffix}`,
    group: `grp_${suffix}`,
    login: `"Log In_${suffix}"`,
    stranger: `str_${suffix}`,
  };
  const { owner, group, login, stranger } = names;
  await pair.onSource.query(`
    CREATE ROLE ${owner} NOLOGIN CREATEDB;
    CREATE ROLE ${group} CONNECTION LIMIT 7;
    CREATE ROLE ${login} LOGIN NOINHERIT PASSWORD 'secret' VALID UNTIL '2100-01-01' IN ROLE ${group};
    CREATE ROLE ${stranger} LOGIN;
    ALTER ROLE ${login} SET search_path = "$user", app;
    ALTER ROLE ${login} SET app.tenant TO 'a b''c';
    CREATE TABLE public.t (a integer);
    ALTER TABLE public.t OWNER TO ${owner};
    GRANT SELECT ON public.t TO ${group};`);
  return {
    ...names,
    async [Symbol.asyncDispose]() {
      await pair.onSource.query('DROP TABLE public.t');
      await pair.onSource.query(`DROP ROLE IF EXISTS ${owner}, ${group}, ${login}, ${stranger}`);
      await pair.onDestination.query(`DROP ROLE IF EXISTS ${owner}, ${group}, ${login}, ${stranger}`);
    },
  };
}

function unquoted(name: string): string {
  return name.replaceAll('"', '');
}

it('creates the roles a database needs on the destination, alike down to the verifier, and no others', async () => {
  await using pair = await databasePair();
  await using names = await rolesOnSource(pair);
  const report = await copyRoles(pair.onSource, pair.onDestination);
  const expected = [names.owner, names.group, names.login].map(unquoted);
  expect(report.created).toEqual(expect.arrayContaining(expected));
  expect(report.created).not.toContain(names.stranger);
  const source = (await readRoles(pair.onSource)).roles;
  const pick = (name: string) => source.find((role) => role.name === unquoted(name));
  const login = pick(names.login);
  expect(login?.verifier).toMatch(/^SCRAM-SHA-256\$/);
  const { rows } = await pair.onDestination.query(
    'SELECT rolpassword, rolinherit, rolvaliduntil FROM pg_authid WHERE rolname = $1',
    [unquoted(names.login)],
  );
  expect(rows).toEqual([
    { rolpassword: login?.verifier, rolinherit: 'f', rolvaliduntil: '2100-01-01 00:00:00+00' },
  ]);
  const after = (await inspectRoles(pair.onSource, pair.onDestination)).filter((finding) =>
    expected.some((name) => finding.object.includes(name)),
  );
  expect(after).toEqual([]);
  // The proof of the copied verifier: the same password opens the destination, with the same settings.
  const session = await connectControl(
    'destination',
    { ...pair.destination, user: unquoted(names.login), password: 'secret' },
    { purpose: 'test' },
  );
  const [tenant] = (await session.query<{ v: string }>(`SELECT current_setting('app.tenant') AS v`)).rows;
  await session.end();
  expect(tenant?.v).toBe(`a b'c`);
});

it('never alters a role that exists, and names what differs without showing a secret', async () => {
  await using pair = await databasePair();
  await using names = await rolesOnSource(pair);
  await pair.onDestination.query(
    `CREATE ROLE ${names.login} LOGIN PASSWORD 'other'; ALTER ROLE ${names.login} SET app.tenant TO 'hidden'`,
  );
  const before = (
    await pair.onDestination.query('SELECT * FROM pg_authid WHERE rolname = $1', [unquoted(names.login)])
  ).rows;
  const { created, findings } = await copyRoles(pair.onSource, pair.onDestination);
  expect(created).not.toContain(unquoted(names.login));
  const after = (
    await pair.onDestination.query('SELECT * FROM pg_authid WHERE rolname = $1', [unquoted(names.login)])
  ).rows;
  expect(after).toEqual(before);
  const own = findings.filter((finding) => finding.object === `role ${unquoted(names.login)}`);
  expect(own.map((finding) => finding.check).sort()).toEqual([
    'role-attributes-differ',
    'role-membership-missing',
    'role-setting-differs',
    'role-setting-differs',
    'role-verifier-differs',
  ]);
  expect(own.find((finding) => finding.check === 'role-attributes-differ')?.advice).toContain('NOINHERIT');
  expect(JSON.stringify(findings)).not.toMatch(/SCRAM-SHA-256\$|hidden|a b'c/);
});

it('makes a differing verifier a blocker while the role has sessions to move', async () => {
  await using pair = await databasePair();
  await using names = await rolesOnSource(pair);
  await pair.onDestination.query(`CREATE ROLE ${names.login} LOGIN PASSWORD 'other'`);
  const verdict = async (): Promise<string | undefined> =>
    (await inspectRoles(pair.onSource, pair.onDestination)).find(
      (finding) =>
        finding.check === 'role-verifier-differs' && finding.object.endsWith(unquoted(names.login)),
    )?.severity;
  expect(await verdict()).toBe('warning');
  const session = await connectControl(
    'source',
    { ...pair.source, user: unquoted(names.login), password: 'secret' },
    { purpose: 'test' },
  );
  await session.query(`SET application_name = 'shop'`);
  expect(await verdict()).toBe('blocker');
  await session.end();
});

it('says what an account without the privilege can’t do, and what to type instead', async () => {
  await using pair = await databasePair();
  await using names = await rolesOnSource(pair);
  const weak = `weak_${randomBytes(4).toString('hex')}`;
  await pair.onDestination.query(`CREATE ROLE ${weak} LOGIN PASSWORD 'weak'`);
  const session = await connectControl(
    'destination',
    { ...pair.destination, user: weak, password: 'weak' },
    { purpose: 'test' },
  );
  const { created, findings } = await copyRoles(pair.onSource, session);
  await session.end();
  await pair.onDestination.query(`DROP ROLE ${weak}`);
  expect(created).toEqual([]);
  const missing = findings.find((finding) => finding.object === `role ${names.owner}`);
  expect(missing).toMatchObject({ severity: 'warning', check: 'role-missing' });
  expect(missing?.advice).toContain(`CREATE ROLE "${names.owner}"`);
  expect(findings.map((finding) => finding.check)).toContain('verifiers-unreadable');
});
