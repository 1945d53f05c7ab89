/**
 * Where the proxy finds what to hold a client's proof against: the server's own `pg_authid`, or a file.
 *
 * Nothing is remembered between logins. A SCRAM client proves itself against the salt it was sent, so a verifier that
 * is a moment old would refuse a password rotated meanwhile, and no second try is possible in the same connection.
 * What a storm of logins needs instead is batching: all lookups that wait while one query runs share the next one.
 */
import { readFile, stat } from 'node:fs/promises';
import type pg from 'pg';
import { asUnderstudyError, UnderstudyError } from '../../core/errors.js';
import type { DatabaseEndpoint, Side } from '../../core/ports.js';
import { connectControl } from '../../core/postgres.js';
import { isMd5Secret } from '../../wire/postgres/md5.js';
import { parseScramVerifier, SCRAM_MECHANISM } from '../../wire/postgres/scram.js';

export type StoredSecret =
  | {
      readonly kind: 'scram';
      readonly iterations: number;
      readonly salt: Buffer;
      readonly storedKey: Buffer;
      readonly serverKey: Buffer;
      /** As stored: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`. */
      readonly text: string;
    }
  | { readonly kind: 'md5'; readonly hash: string }
  | { readonly kind: 'plain'; readonly password: string }
  /** There is none, and the server asks for MD5 where it does not know the role; otherwise there is just null. */
  | { readonly kind: 'none-by-md5' };

export interface VerifierSource {
  /** The role's secret; null where the role is unknown, has no password, or its password has expired.
   *  Throws an `UnderstudyError` where that can't be found out. `database`: the one the client asks for. */
  lookup(user: string, database?: string): Promise<StoredSecret | null>;
}

/** Tells the three forms of a stored secret apart; null for none, and for a damaged SCRAM verifier. */
export function readStoredSecret(text: string): StoredSecret | null {
  if (text === '') return null;
  if (isMd5Secret(text)) return { kind: 'md5', hash: text };
  const verifier = parseScramVerifier(text);
  if (verifier !== null) return { kind: 'scram', ...verifier, text };
  return text.startsWith(`${SCRAM_MECHANISM}$`) ? null : { kind: 'plain', password: text };
}

// ---------------------------------------------------------------------------------------------------------------
// By query

/** Roles without LOGIN are read too: the server itself then refuses them, after the password, with its own error. */
const LOOKUP_SQL = `
  SELECT rolname, rolpassword FROM pg_catalog.pg_authid
  WHERE rolname = ANY($1::pg_catalog.name[]) AND rolpassword IS NOT NULL
    AND (rolvaliduntil IS NULL OR rolvaliduntil > pg_catalog.now())
  UNION ALL SELECT '', pg_catalog.current_setting('password_encryption')`;
/** No role's. */
const ENCRYPTION = '';

/** Users whose verifier is kept as it was read last. */
const KNOWN_MAX = 1000;

const INSUFFICIENT_PRIVILEGE = '42501';

const NONE_BY_MD5: StoredSecret = { kind: 'none-by-md5' };

export interface QueryVerifiersOptions {
  /** Where to read now: the side that may be written. Asked before each query. May throw an `UnderstudyError`. */
  readonly current: () => { readonly side: Side; readonly endpoint: DatabaseEndpoint };
  readonly connectTimeoutMs: number;
  readonly queryTimeoutMs: number;
  /** Logins waiting at once; more are refused with `limit-reached`. */
  readonly waitingMax: number;
}

interface Waiting {
  readonly resolve: (secret: StoredSecret | null) => void;
  readonly reject: (error: unknown) => void;
}

interface Control {
  readonly side: Side;
  readonly client: pg.Client;
}

/**
 * Reads verifiers over one control connection, opened when first needed and again after it was lost or the writable
 * side changed.
 *
 * States: idle (nobody waits) → querying (one batch in flight, others collect behind it) → idle; closed is final.
 * Invariant: at most one query runs. Failure: a connection that turns out to be dead is replaced once per batch; what
 * fails then fails every lookup of that batch, and the next batch starts afresh.
 */
export class QueryVerifiers implements VerifierSource {
  readonly #options: QueryVerifiersOptions;
  #waiting = new Map<string, Waiting[]>();
  #waitingCount = 0;
  #state: 'idle' | 'querying' | 'closed' = 'idle';
  #control: Control | undefined;
  readonly #known = new Map<string, Extract<StoredSecret, { readonly kind: 'scram' }>>();

  constructor(options: QueryVerifiersOptions) {
    this.#options = options;
  }

  lookup(user: string): Promise<StoredSecret | null> {
    if (this.#state === 'closed') return Promise.reject(new UnderstudyError('cancelled', 'shutting down'));
    if (this.#waitingCount >= this.#options.waitingMax) {
      return Promise.reject(
        new UnderstudyError('limit-reached', `${this.#waitingCount} logins wait for their verifier already`),
      );
    }
    return new Promise((resolve, reject) => {
      const others = this.#waiting.get(user);
      if (others === undefined) this.#waiting.set(user, [{ resolve, reject }]);
      else others.push({ resolve, reject });
      this.#waitingCount += 1;
      if (this.#state === 'idle') void this.#serve();
    });
  }

  /** Ends the control connection; lookups under way fail. */
  async close(): Promise<void> {
    this.#state = 'closed';
    await this.#drop();
  }

  /** The sessions of one user share what their verifier holds. */
  #secretOf(user: string, text: string): StoredSecret | null {
    const known = this.#known.get(user);
    if (known?.kind === 'scram' && known.text === text) return known;
    const secret = readStoredSecret(text);
    if (secret?.kind !== 'scram') return secret;
    if (this.#known.size >= KNOWN_MAX) this.#known.clear();
    this.#known.set(user, secret);
    return secret;
  }

  async #serve(): Promise<void> {
    this.#state = 'querying';
    while (this.#waiting.size > 0) {
      const batch = this.#waiting;
      this.#waiting = new Map();
      this.#waitingCount = 0;
      try {
        const secrets = await this.#read([...batch.keys()]);
        // As the server picks the exchange that nobody can win: by how it would store a password.
        const none = secrets.get(ENCRYPTION) === 'md5' ? NONE_BY_MD5 : null;
        for (const [user, waiting] of batch) {
          const text = secrets.get(user);
          const secret = text === undefined ? none : this.#secretOf(user, text);
          for (const { resolve } of waiting) resolve(secret);
        }
      } catch (error) {
        for (const waiting of batch.values()) for (const { reject } of waiting) reject(error);
      }
    }
    if (this.#state === 'querying') this.#state = 'idle';
  }

  async #read(users: readonly string[]): Promise<Map<string, string>> {
    const { side, endpoint } = this.#options.current();
    if (this.#control !== undefined && this.#control.side !== side) await this.#drop();
    const reused = this.#control;
    try {
      return await this.#query(reused ?? (await this.#connect(side, endpoint)), users);
    } catch (error) {
      await this.#drop();
      if (reused === undefined || this.#state === 'closed') throw this.#explain(side, error);
    }
    // A connection that was kept since the last login may have died unseen; a fresh one tells.
    try {
      return await this.#query(await this.#connect(side, endpoint), users);
    } catch (error) {
      await this.#drop();
      throw this.#explain(side, error);
    }
  }

  async #connect(side: Side, endpoint: DatabaseEndpoint): Promise<Control> {
    const client = await connectControl(side, endpoint, {
      purpose: 'verifiers',
      connectTimeoutMs: this.#options.connectTimeoutMs,
    });
    const control = { side, client };
    this.#control = control;
    client.on('end', () => {
      if (this.#control === control) this.#control = undefined;
    });
    if (this.#state === 'closed') {
      await this.#drop();
      throw new UnderstudyError('cancelled', 'shutting down');
    }
    return control;
  }

  async #query(control: Control, users: readonly string[]): Promise<Map<string, string>> {
    const query: pg.QueryConfig & { readonly query_timeout: number } = {
      // Parsed and planned once for the connection: every login asks.
      name: 'understudy_verifiers',
      text: LOOKUP_SQL,
      values: [users],
      query_timeout: this.#options.queryTimeoutMs,
    };
    const { rows } = await control.client.query<{ rolname: string; rolpassword: string }>(query);
    return new Map(rows.map((row) => [row.rolname, row.rolpassword]));
  }

  async #drop(): Promise<void> {
    const control = this.#control;
    this.#control = undefined;
    await control?.client.end().catch(() => undefined);
  }

  #explain(side: Side, error: unknown): UnderstudyError {
    const code = side === 'source' ? 'source-query-failed' : 'destination-query-failed';
    if (sqlStateOf(error) !== INSUFFICIENT_PRIVILEGE) {
      return asUnderstudyError(error, code, `password verifiers can’t be read from the ${side}`);
    }
    return new UnderstudyError(code, `Understudy’s account may not read pg_authid on the ${side}`, {
      cause: error,
      advice: 'Give the proxy a users file instead, or an account that may read pg_authid.',
    });
  }
}

/** The SQLSTATE of an error of `pg`, also below a wrapping; undefined for anything else. */
export function sqlStateOf(error: unknown): string | undefined {
  if (!(error instanceof Error)) return undefined;
  if ('code' in error && typeof error.code === 'string' && /^[0-9A-Z]{5}$/.test(error.code))
    return error.code;
  return sqlStateOf(error.cause);
}

// ---------------------------------------------------------------------------------------------------------------
// From a file

const FILE_BYTES_MAX = 16 * 1024 * 1024;

/**
 * Reads PgBouncer's `userlist.txt`: one `"user" "secret"` a line, a quote inside written twice; lines that don't
 * begin with a quote are comments. Throws `config-invalid` naming the line, never its content.
 */
export function parseUsersFile(text: string): Map<string, StoredSecret> {
  const users = new Map<string, StoredSecret>();
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (!line.startsWith('"')) continue;
    const match = /^"((?:[^"]|"")*)"[ \t]+"((?:[^"]|"")*)"/.exec(line);
    const [, user = '', secretText = ''] = match ?? [];
    if (user === '') {
      throw new UnderstudyError('config-invalid', `users file, line ${index + 1}: "user" "secret" expected`);
    }
    const unquoted = secretText.replaceAll('""', '"');
    const secret = readStoredSecret(unquoted);
    if (secret === null && unquoted !== '') {
      throw new UnderstudyError('config-invalid', `users file, line ${index + 1}: damaged SCRAM verifier`);
    }
    if (secret !== null) users.set(user.replaceAll('""', '"'), secret);
  }
  return users;
}

/** Verifiers from a users file, read again whenever the file has changed. */
export class UsersFileVerifiers implements VerifierSource {
  readonly #path: string;
  #version = '';
  #users = new Map<string, StoredSecret>();

  constructor(path: string) {
    this.#path = path;
  }

  async lookup(user: string): Promise<StoredSecret | null> {
    await this.#refresh();
    return this.#users.get(user) ?? null;
  }

  async #refresh(): Promise<void> {
    try {
      const { mtimeNs, size, ino } = await stat(this.#path, { bigint: true });
      const version = `${mtimeNs} ${size} ${ino}`;
      if (version === this.#version) return;
      if (size > FILE_BYTES_MAX) {
        throw new UnderstudyError('config-invalid', `users file larger than ${FILE_BYTES_MAX} bytes`);
      }
      this.#users = parseUsersFile(await readFile(this.#path, 'utf8'));
      this.#version = version;
    } catch (error) {
      throw asUnderstudyError(error, 'config-invalid', 'users file');
    }
  }
}
