/**
 * The tables that a shadow by `log` is made of, and how each side has them: the destination's may have other names,
 * columns and partitions than the source's, as the format says.
 *
 * They are the source's as they were last read: by the attempt that built the schema, that found it built, or that
 * carried a change of it over; none until then. Until the copy is done and its indexes stand, the destination has the
 * source's names; `named` says that it has those of the format.
 */
import type { ShadowTable, Side, SubsetId } from '../core/ports.js';
import { readSubsetTables } from '../core/subsets.js';
import { formOn, requiredForms, type Forms } from './format/forms.js';
import { withSession } from './postgres/statement.js';
import { tableKey, type TableInfo } from './postgres/table.js';
import { readTables } from './postgres/tables.js';
import type { ShadowSettings } from './settings.js';
import { isUnlogged } from './unlogged.js';

export class ShadowTables {
  readonly #settings: Pick<ShadowSettings, 'source' | 'format' | 'subsets'>;
  /** As the source has them. */
  all: readonly TableInfo[] = [];
  named = false;

  constructor(settings: Pick<ShadowSettings, 'source' | 'format' | 'subsets'>) {
    this.#settings = settings;
  }

  /** Without those whose rows no log tells of. */
  get logged(): readonly TableInfo[] {
    return this.all.filter((table) => !isUnlogged(table));
  }

  get someUnlogged(): boolean {
    return this.all.some(isUnlogged);
  }

  /** `name` as `schema.name`. */
  has(name: string): boolean {
    return this.all.some((table) => tableKey(table) === name);
  }

  /** Throws `format-refused` where the tables can't have the format. */
  forms(): Forms {
    return requiredForms(this.#settings.format, this.all, this.named);
  }

  formOn(table: TableInfo, side: Side): TableInfo {
    return formOn(this.forms(), table, side);
  }

  on(side: Side): readonly TableInfo[] {
    return this.all.map((table) => this.formOn(table, side));
  }

  /** By the source's names, each with the destination's where that is another. */
  names(): readonly ShadowTable[] {
    return this.all.map((table) => {
      const { schema, name } = table;
      const there = this.formOn(table, 'destination');
      const same = there.schema === schema && there.name === name;
      return {
        schema,
        name,
        ...(same ? {} : { destination: { schema: there.schema, name: there.name } }),
        ...(there.partitions === undefined ? {} : { partitions: there.partitions }),
      };
    });
  }

  /** As `names`, of one subset or of all; asks the source where it was not asked yet. Throws `source-…` errors. */
  async list(subset?: SubsetId): Promise<readonly ShadowTable[]> {
    const { source, subsets } = this.#settings;
    if (this.all.length === 0) {
      await withSession('source', source, 'tables', async (session) => {
        this.all = await readTables(session.client);
      });
    }
    if (subset === undefined || subsets.length === 0) return this.names();
    const members = await withSession('source', source, 'subsets', async (session) =>
      (await readSubsetTables(session.client, subsets)).find((each) => each.subset === subset),
    );
    const named = new Set(members?.tables.map((table) => `${table.schema}.${table.name}`));
    return this.names().filter((table) => named.has(`${table.schema}.${table.name}`));
  }
}
