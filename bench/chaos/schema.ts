/** The tables that the clients of a run use. */
import type { Group } from './arrangement.js';

export const ACCOUNTS = 8;
export const BALANCE = 1000;
export const REGISTERS = 2;
/** Long enough that a full disk is felt soon. */
export const NOTE = 'n'.repeat(300);

/** Their role: an application's, with no more rights than one has. */
export const APP_ROLE = 'chaos_app';
export const APP_PASSWORD = 'chaos-local';

/** What a register is also read and written through. */
const registerObjects = (schema: string): string => `
  CREATE VIEW ${schema}.register_view AS SELECT key, value FROM ${schema}.register;
  CREATE FUNCTION ${schema}.register_value(int) RETURNS bigint LANGUAGE sql STABLE
    AS 'SELECT value FROM ${schema}.register WHERE key = $1';
  CREATE FUNCTION ${schema}.register_told(at int) RETURNS bigint LANGUAGE plpgsql SET search_path = ${schema} AS
    'DECLARE found bigint; BEGIN SELECT value INTO found FROM register WHERE key = at; RETURN found; END';
  CREATE FUNCTION ${schema}.register_set(int, bigint) RETURNS void LANGUAGE sql
    AS 'UPDATE ${schema}.register SET value = $2 WHERE key = $1';`;

/** A ledger without a unique id, so that a row written twice is there twice. */
export const SCHEMA_SQL = `
  CREATE TABLE public.ledger (seq bigserial, id bigint NOT NULL, note text, PRIMARY KEY (seq, id)) PARTITION BY HASH (id);
  CREATE TABLE public.ledger_0 PARTITION OF public.ledger FOR VALUES WITH (MODULUS 2, REMAINDER 0);
  CREATE TABLE public.ledger_1 PARTITION OF public.ledger FOR VALUES WITH (MODULUS 2, REMAINDER 1);
  CREATE TABLE public.register (key int PRIMARY KEY, value bigint NOT NULL);
  CREATE TABLE public.account (id int PRIMARY KEY, balance bigint NOT NULL);
  CREATE TABLE public.transfer (id bigint PRIMARY KEY, debit int NOT NULL REFERENCES public.account,
    credit int NOT NULL REFERENCES public.account, amount int NOT NULL);
  CREATE SCHEMA decoy;
  CREATE TABLE decoy.register (key int PRIMARY KEY, value bigint NOT NULL);
  INSERT INTO public.register SELECT key, 0 FROM generate_series(1, ${REGISTERS}) key;
  INSERT INTO decoy.register SELECT key, 0 FROM generate_series(1, ${REGISTERS}) key;
  ${['public', 'decoy'].map(registerObjects).join('')}
  INSERT INTO public.account SELECT id, ${BALANCE} FROM generate_series(1, ${ACCOUNTS}) id;
  GRANT USAGE ON SCHEMA decoy TO ${APP_ROLE};
  GRANT ALL ON ALL TABLES IN SCHEMA public, decoy TO ${APP_ROLE};
  GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO ${APP_ROLE};
`;
/** Of each group, one. */
export const TABLE_OF: Readonly<Record<Group, string>> = {
  ledger: 'public.ledger',
  register: 'public.register',
  decoy: 'decoy.register',
  bank: 'public.account',
};
export const TABLES = ['ledger', 'register', 'account', 'transfer', 'decoy.register'] as const;
/** The registers of the second table have the keys after those of the first. */
export const REGISTER_TABLES = ['public', 'decoy'] as const;
/** Tells which server answers. */
export const PORT = `current_setting('port')`;
