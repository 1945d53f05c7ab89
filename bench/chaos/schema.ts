/** The tables that the clients of a run use. */
export const ACCOUNTS = 8;
export const BALANCE = 1000;
export const REGISTERS = 2;
/** Long enough that a full disk is felt soon. */
export const NOTE = 'n'.repeat(300);

/** Their role: an application's, with no more rights than one has. */
export const APP_ROLE = 'chaos_app';
export const APP_PASSWORD = 'chaos-local';

/** A ledger without a unique id, so that a row written twice is there twice. */
export const SCHEMA_SQL = `
  CREATE TABLE public.ledger (seq bigserial, id bigint NOT NULL, note text, PRIMARY KEY (seq, id)) PARTITION BY HASH (id);
  CREATE TABLE public.ledger_0 PARTITION OF public.ledger FOR VALUES WITH (MODULUS 2, REMAINDER 0);
  CREATE TABLE public.ledger_1 PARTITION OF public.ledger FOR VALUES WITH (MODULUS 2, REMAINDER 1);
  CREATE TABLE public.register (key int PRIMARY KEY, value bigint NOT NULL);
  CREATE TABLE public.account (id int PRIMARY KEY, balance bigint NOT NULL);
  CREATE TABLE public.transfer (id bigint PRIMARY KEY, debit int NOT NULL REFERENCES public.account,
    credit int NOT NULL REFERENCES public.account, amount int NOT NULL);
  INSERT INTO public.register SELECT key, 0 FROM generate_series(1, ${REGISTERS}) key;
  INSERT INTO public.account SELECT id, ${BALANCE} FROM generate_series(1, ${ACCOUNTS}) id;
  GRANT ALL ON ALL TABLES IN SCHEMA public TO ${APP_ROLE};
  GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO ${APP_ROLE};
`;
export const TABLES = ['ledger', 'register', 'account', 'transfer'] as const;
