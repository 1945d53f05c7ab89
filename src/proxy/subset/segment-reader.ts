/**
 * What the texts of a segment touch: each is read under the search path and the user of the session as they are now, which
 * the server is asked for wherever they may have changed; and the texts of what the session has prepared, by name.
 *
 * Invariant: a reading counts for what the session is at the moment it is used: `known` answers from memory only where
 * nothing was sent since that could have changed what a name means.
 */
import type { NameScope, StatementReach } from '../../core/subset-ports.js';
import { STATUS_FAILED } from '../session/response-tracker.js';
import { sameScope } from './name-scope.js';
import { NOTHING, both, unknown, unread, type Reach } from './reach.js';
import type { RoutedSession } from './routed-session.js';
import { PreparedNames } from './subset-names.js';
import type { SubsetRouting } from './subset-routing.js';
import type { Run, Segment } from './subset-scan.js';

/** A text that may prepare statements by SQL, or let go of some. */
const RENAMES_STATEMENTS = /prepare|deallocate|discard/i;
const ASCII = /^\p{ASCII}*$/u;
/** In others a byte that looks like a quote may be half of a letter. */
const PLAIN_ENCODING = /^(?:UTF-?8|SQL_ASCII|LATIN\d+|WIN\d+|ISO_8859_\d|KOI8[RU]|EUC_\w+)$/i;

export class SegmentReader {
  readonly #shared: SubsetRouting;
  readonly #session: RoutedSession;
  readonly names = new PreparedNames();
  #scope: NameScope | null = null;
  #scopeAtChange = -1;

  constructor(shared: SubsetRouting, session: RoutedSession) {
    this.#shared = shared;
    this.#session = session;
  }

  /** What names mean may be something else from now on. */
  forgetScope(): void {
    this.#scope = null;
  }

  /** Null where somebody has to be asked. */
  known(segment: Segment): Reach | null {
    const refused = this.#unreadable(segment);
    if (refused !== null) return unknown(refused);
    if (segment.runs.length + segment.prepares.length === 0) return NOTHING;
    // Also for what only prepares: in the middle of a pipeline nobody can be asked any more.
    if (this.#scope === null || this.#scopeAtChange !== this.#settingChanges) return null;
    let reach = NOTHING;
    for (const run of segment.runs) {
      const text = this.#textOf(run);
      const read = text === undefined ? undefined : this.#shared.reaches.known(text, this.#scope);
      if (read === undefined || read.executes.length > 0) return null;
      reach = both(reach, read);
    }
    return reach;
  }

  #unreadable(segment: Segment): string | null {
    if (segment.callsFunction) return 'a function is called by its number';
    // One that is prepared keeps the meaning that it has now.
    const texts = [
      ...segment.runs.map((run) => this.#textOf(run)),
      ...segment.prepares.map(({ text }) => text),
    ];
    for (const text of texts) {
      const why = text == null ? null : this.#unreadableText(text);
      if (why !== null) return why;
    }
    return null;
  }

  /** By the settings of now. What would put them right again can be read under any. */
  #unreadableText(text: string): string | null {
    const encoding = this.#session.parameter('client_encoding') ?? '';
    if (!PLAIN_ENCODING.test(encoding) && !ASCII.test(text)) return `statements in ${encoding} can’t be read`;
    const escaped = this.#session.parameter('standard_conforming_strings') === 'off' && text.includes('\\');
    return escaped ? 'standard_conforming_strings is off, and it has a backslash' : null;
  }

  #textOf(run: Run): string | undefined {
    if (run.text !== undefined) return run.text;
    return (
      this.names.textOf(run.statement, this.#session.tracker.errors) ??
      this.#session.preparedText(run.statement) ??
      (run.statement === '' ? this.#unnamedText() : undefined)
    );
  }

  /** Of the unnamed statement that is alive, where it was prepared before the router was armed. */
  #unnamedText(): string | undefined {
    const payload = this.#session.clientStream.unnamedParse;
    if (payload === null || this.names.unnamedInDoubt) return undefined;
    return payload.toString('utf8', 1, Math.max(1, payload.indexOf(0, 1)));
  }

  async read(segment: Segment, wanted: () => boolean): Promise<Reach> {
    const scope = await this.#scopeNow();
    if (scope === null) return unknown('what its names mean can’t be asked at the moment');
    // Only now it is certain what is set.
    const refused = this.#unreadable(segment);
    if (refused !== null) return unknown(refused);
    // What others prepare in front of it is not there yet.
    const alone = segment.runs.length === 1 && this.#session.tracker.settled;
    let reach = NOTHING;
    for (const run of segment.runs) {
      if (!wanted()) return unknown('it was given up');
      const text = this.#textOf(run);
      const read =
        text === undefined
          ? await this.#readPrepared(run.statement ?? '', scope, alone)
          : await this.#shared.reaches.read(text, scope);
      reach = both(reach, read);
      for (const name of read.executes) reach = both(reach, await this.#readPrepared(name, scope, alone));
    }
    return reach;
  }

  /** What the server says that a prepared statement's text is. */
  async #readPrepared(name: string, scope: NameScope, alone: boolean): Promise<StatementReach> {
    const { tracker, ask, clientStream } = this.#session;
    // The server says that there is no such statement.
    const { unnamedInDoubt } = this.names;
    if (name === '' && !clientStream.unnamedIrreplaceable && !unnamedInDoubt)
      return { ...NOTHING, executes: [] };
    const why = `the prepared statement ${printable(name)} is not known`;
    if (name === '' || !tracker.settled || tracker.status === STATUS_FAILED) return unread(why);
    const literal = `'${Buffer.from(name, 'utf8').toString('latin1').replaceAll("'", "''")}'`;
    const { rows, sqlState } = await ask(
      `SELECT from_sql::text, statement FROM pg_catalog.pg_prepared_statements WHERE name = ${literal}`,
    );
    if (sqlState === null && rows.length === 0 && alone) return { ...NOTHING, executes: [] };
    const [fromSql, raw] = rows[0] ?? [];
    if (sqlState !== null || raw === undefined || raw === null) return unread(why);
    const text = Buffer.from(raw, 'latin1').toString('utf8');
    const unreadable = this.#unreadableText(text);
    if (unreadable !== null) return unread(unreadable);
    if (fromSql === 'true') return await this.#shared.reaches.read(text, { ...scope, prepared: true });
    this.names.known(name, text);
    return await this.#shared.reaches.read(text, scope);
  }

  get #settingChanges(): number {
    const { changes, preparing } = this.#session.clientStream;
    return changes - preparing;
  }

  /** Whether this server says otherwise than the one by which the statement was read. */
  async namesDiffer(): Promise<boolean> {
    const read = this.#scope;
    if (read === null || this.#session.tracker.status === STATUS_FAILED) return false;
    const here = await this.#session.scope();
    return here === null || !sameScope(here, read);
  }

  /** Asks the server where that is not known any more. Null where it can't be asked. */
  async #scopeNow(): Promise<NameScope | null> {
    const { tracker } = this.#session;
    if (this.#scope !== null && this.#scopeAtChange === this.#settingChanges) return this.#scope;
    // A failed transaction runs nothing but its end, whatever names mean.
    if (tracker.status === STATUS_FAILED) return { searchPath: '', user: '' };
    if (!tracker.settled) return null;
    const change = this.#settingChanges;
    this.#scope = await this.#session.scope();
    this.#scopeAtChange = change;
    return this.#scope;
  }

  /** Under which the last texts were read; null where that is not known any more. */
  get scope(): NameScope | null {
    return this.#scopeAtChange === this.#settingChanges ? this.#scope : null;
  }

  noteNames(segment: Segment): void {
    const { errors } = this.#session.tracker;
    const renaming = segment.runs.some((run) => RENAMES_STATEMENTS.test(this.#textOf(run) ?? 'PREPARE'));
    if (renaming) this.names.clear();
    for (const { name, text } of segment.prepares)
      this.names.sent(name, renaming && name !== '' ? null : text, errors);
    if (segment.simple) this.names.sent('', null, errors);
  }
}

function printable(raw: string): string {
  return raw.replaceAll(/[^\x20-\x7e]/g, '?');
}
