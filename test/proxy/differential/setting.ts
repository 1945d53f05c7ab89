/** What all differential tests share: the conversations, and the database they are held about. */
import type pg from 'pg';
import { SUPERUSER_PASSWORD } from '../../../src/app/demo/embedded-server.js';
import { deriveScramKeys, formatScramVerifier } from '../../../src/wire/postgres/scram.js';
import type { DatabaseEndpoint } from '../../../src/core/ports.js';
import type { DatabasePair } from '../../support/servers.js';
import { PLAYER, type Conversation } from './conversation.js';
import { COPY, COPY_BROKEN } from './copy.js';
import { EXTENDED } from './extended.js';
import { FORMATS } from './formats.js';
import { MALFORMED } from './malformed.js';
import { SIMPLE } from './simple.js';
import { STARTUP } from './startup.js';
import { STATE } from './state.js';
import { TRANSACTIONS } from './transactions.js';

export const TOPICS: Record<string, readonly Conversation[]> = {
  simple: SIMPLE,
  transactions: TRANSACTIONS,
  extended: EXTENDED,
  copy: [...COPY, ...COPY_BROKEN],
  state: STATE,
  formats: FORMATS,
  malformed: MALFORMED,
  startup: STARTUP,
};

export const SCHEMA = `
CREATE SCHEMA scratch;
CREATE TABLE item (id int PRIMARY KEY, name text);
CREATE TABLE child (id int, item int REFERENCES item DEFERRABLE INITIALLY DEFERRED);
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE feeling (id int, mood mood, moods mood[], pair pair, positive positive);
INSERT INTO feeling VALUES (1, 'happy', '{sad,ok}', '(1,x)', 5);
CREATE FUNCTION shout(int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'row %', $1; RETURN $1; END $$;
CREATE PROCEDURE twice(INOUT n int, INOUT t text) LANGUAGE plpgsql AS $$ BEGIN n := n * 2; t := t || t; END $$;
DO $$ BEGIN
  CREATE ROLE nologin_role NOLOGIN PASSWORD 'understudy-local';
  CREATE ROLE crowded_role LOGIN CONNECTION LIMIT 0 PASSWORD 'understudy-local';
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$`;
export const FILL = "INSERT INTO item SELECT i, 'item ' || i FROM generate_series(1, 500) i";

/** A superuser whose password takes one iteration to prove: hundreds of logins must not cost a second of hashing each. */
export async function createPlayer(control: pg.Client): Promise<void> {
  const salt = Buffer.alloc(16, 7);
  const { storedKey, serverKey } = await deriveScramKeys(SUPERUSER_PASSWORD, salt, 1);
  const verifier = formatScramVerifier({ iterations: 1, salt, storedKey, serverKey });
  await control.query(`DO $$ BEGIN
    CREATE ROLE ${PLAYER} SUPERUSER LOGIN PASSWORD '${verifier}';
  EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$`);
}

/** A pair of which only the first side is used. */
export function serving(
  endpoint: DatabaseEndpoint,
  port: number,
): Pick<DatabasePair, 'source' | 'destination'> {
  return { source: { ...endpoint, port }, destination: endpoint };
}
