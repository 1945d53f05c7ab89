/**
 * What it takes to bring a shadow whose schema was built by one plan to a later one. Pure: plans in, statements out.
 *
 * Carried over: what is new; columns added at the end or between; NOT NULL set or dropped; labels added to an enum; what
 * can be replaced in place (functions, views, sequences); and what can be taken back without losing a row (defaults,
 * checks, indexes, foreign keys, views, triggers, policies, comments, privileges), see {@link SchemaStatement.undo}.
 * Everything else is an obstacle, named with the statement that a person would run: it may lose rows or change what
 * rows mean, and whether the shadow's should follow is not ours to guess.
 */
import { quoteLiteral } from '../../../core/postgres.js';
import type { SchemaPlan, SchemaStatement, StatementShape, TableColumnShape } from './plan.js';

/** The parts of a plan that are recorded. */
export type BuiltPlan = Pick<SchemaPlan, 'beforeCopy' | 'afterCopy'>;

export interface Obstacle {
  readonly object: string;
  /** What happened to it on the source, as a sentence without its object. */
  readonly what: string;
  /** The statement for the destination, where it is known. */
  readonly sql: string | null;
}

export interface AddedColumn {
  /** Quoted and qualified. */
  readonly table: string;
  /** Quoted. */
  readonly column: string;
  readonly missing: string | null;
}

export interface Evolution {
  /** Run one by one, each in a transaction of its own, before the rest: what can't be used where it was made. */
  readonly first: readonly SchemaStatement[];
  /** Run in one transaction. */
  readonly statements: readonly SchemaStatement[];
  /** Statements of the plan that `statements` stand for, so that they must not be run again. */
  readonly done: readonly SchemaStatement[];
  /** Statements of the former plan that no longer hold, or were lost with another: they may be run anew. */
  readonly forgotten: readonly SchemaStatement[];
  readonly addedColumns: readonly AddedColumn[];
  /** Tables, quoted and qualified, whose rows got values that the log does not tell. */
  readonly recopied: readonly string[];
  readonly obstacles: readonly Obstacle[];
}

/** Where nothing is lost by leaving the destination as it is. */
const HARMLESS_REMOVALS = new Set<SchemaStatement['kind']>([
  'owner',
  'grant',
  'setting',
  'comment',
  'validate',
  'refresh',
]);

function keyOf(statement: SchemaStatement): string {
  return `${statement.kind}\0${statement.object}\0${statement.sql}`;
}

function objectKey(statement: SchemaStatement): string {
  return `${statement.kind}\0${statement.object}`;
}

function grouped(statements: readonly SchemaStatement[]): ReadonlyMap<string, readonly SchemaStatement[]> {
  const groups = new Map<string, SchemaStatement[]>();
  for (const statement of statements) {
    const group = groups.get(objectKey(statement));
    if (group === undefined) groups.set(objectKey(statement), [statement]);
    else group.push(statement);
  }
  return groups;
}

class Evolving {
  readonly first: SchemaStatement[] = [];
  readonly undone: SchemaStatement[] = [];
  readonly statements: SchemaStatement[] = [];
  readonly done: SchemaStatement[] = [];
  readonly forgotten: SchemaStatement[] = [];
  readonly addedColumns: AddedColumn[] = [];
  readonly recopied: string[] = [];
  readonly obstacles: Obstacle[] = [];

  like(statement: SchemaStatement, sql: string): SchemaStatement {
    return {
      kind: statement.kind,
      object: statement.object,
      sql,
      ...(statement.roles === undefined ? {} : { roles: statement.roles }),
    };
  }

  refuse(statement: SchemaStatement, what: string, sql: string | null = null): void {
    this.obstacles.push({ object: statement.object, what, sql });
  }

  /** Null where the new statement can't stand in for the old one. */
  replacement(before: SchemaStatement, after: SchemaStatement): readonly string[] | null {
    if (/^CREATE OR REPLACE (FUNCTION|PROCEDURE) /.test(after.sql)) return [after.sql];
    if (after.kind === 'view' && after.sql.startsWith('CREATE VIEW '))
      return [after.sql.replace(/^CREATE /, 'CREATE OR REPLACE ')];
    if (after.kind === 'aggregate') return [after.sql.replace(/^CREATE /, 'CREATE OR REPLACE ')];
    if (after.kind === 'sequence' && before.sql.startsWith('CREATE ') && after.sql.startsWith('CREATE ')) {
      const sql = after.sql.replace(/^CREATE (UNLOGGED )?SEQUENCE/, 'ALTER SEQUENCE');
      return [sql.endsWith(' CYCLE') ? sql : `${sql} NO CYCLE`];
    }
    if (after.kind === 'sequence' && after.sql.includes(' OWNED BY ')) return [after.sql];
    return null;
  }

  table(
    before: SchemaStatement,
    after: SchemaStatement,
    was: StatementShape & { of: 'table' },
    is: StatementShape & { of: 'table' },
  ): void {
    if (was.rest !== is.rest) {
      this.refuse(before, 'was changed in more than its columns');
      return;
    }
    const now = new Map(is.columns.map((column) => [column.name, column]));
    const known = new Set(was.columns.map((column) => column.name));
    const alter = (action: string): string => `ALTER TABLE ${is.name} ${action}`;
    for (const column of was.columns) {
      const other = now.get(column.name);
      if (other === undefined) {
        // A partition's columns go with its root's.
        if (!is.isPartition)
          this.refuse(before, `lost its column ${column.name}`, alter(`DROP COLUMN ${column.name}`));
      } else if (other.sql !== column.sql && !is.isPartition) {
        this.column(before, column, other, alter);
      }
    }
    for (const column of is.columns) if (!known.has(column.name)) this.added(after, is, column, alter);
    this.done.push(after);
  }

  column(
    statement: SchemaStatement,
    was: TableColumnShape,
    is: TableColumnShape,
    alter: (action: string) => string,
  ): void {
    const nullable = (column: TableColumnShape): string =>
      column.sql.replace(/ (CONSTRAINT ("([^"]|"")+"|\w+) )?NOT NULL$/, '');
    if (nullable(was) === nullable(is) && is.type === was.type) {
      const set = nullable(is) === is.sql ? 'DROP' : 'SET';
      this.statements.push(this.like(statement, alter(`ALTER COLUMN ${is.name} ${set} NOT NULL`)));
      return;
    }
    const sql = was.type === is.type ? null : alter(`ALTER COLUMN ${is.name} TYPE ${is.type}`);
    this.refuse(statement, `has another definition of its column ${is.name}: ${is.sql}`, sql);
  }

  added(
    statement: SchemaStatement,
    table: StatementShape & { of: 'table' },
    column: TableColumnShape,
    alter: (action: string) => string,
  ): void {
    this.addedColumns.push({ table: table.name, column: column.name, missing: column.missing });
    if (table.isPartition) return;
    const { missing } = column;
    const value = missing === null ? '' : ` DEFAULT ${quoteLiteral(missing)}::${column.type}`;
    this.statements.push(this.like(statement, alter(`ADD COLUMN ${column.sql}${value}`)));
    // What stays its default, where it has one, is a statement of the plan.
    if (missing !== null)
      this.statements.push(this.like(statement, alter(`ALTER COLUMN ${column.name} DROP DEFAULT`)));
    // A default that differs from row to row was worked out on the source alone.
    if (column.filled && missing === null) this.recopied.push(table.name);
  }

  labels(
    before: SchemaStatement,
    after: SchemaStatement,
    was: readonly string[],
    is: StatementShape & { of: 'enum' },
  ): void {
    const kept = is.labels.filter((label) => was.includes(label));
    if (kept.join('\0') !== was.join('\0')) {
      this.refuse(before, 'lost, renamed or moved a label');
      return;
    }
    is.labels.forEach((label, index) => {
      if (was.includes(label)) return;
      const previous = is.labels[index - 1];
      const next = is.labels.slice(index + 1).find((other) => was.includes(other));
      const where =
        previous !== undefined
          ? ` AFTER ${quoteLiteral(previous)}`
          : next === undefined
            ? ''
            : ` BEFORE ${quoteLiteral(next)}`;
      const sql = `ALTER TYPE ${is.name} ADD VALUE IF NOT EXISTS ${quoteLiteral(label)}${where}`;
      this.first.push(this.like(after, sql));
    });
    this.done.push(after);
  }
}

/** `counterparts`: for a statement that is gone, the one of the same object that is new. */
function changed(evolving: Evolving, before: SchemaStatement, after: SchemaStatement): boolean {
  const { shape: was } = before;
  const { shape: is } = after;
  if (was?.of === 'table' && is?.of === 'table') {
    evolving.table(before, after, was, is);
    return true;
  }
  if (was?.of === 'enum' && is?.of === 'enum') {
    evolving.labels(before, after, was.labels, is);
    return true;
  }
  const replacement = evolving.replacement(before, after);
  if (replacement === null) return false;
  evolving.statements.push(...replacement.map((sql) => evolving.like(after, sql)));
  evolving.done.push(after);
  return true;
}

const DROPPABLE: Partial<Record<SchemaStatement['kind'], string>> = {
  table: 'TABLE',
  schema: 'SCHEMA',
  extension: 'EXTENSION',
  function: '',
  aggregate: '',
  sequence: '',
  type: 'TYPE',
};

function makes(statement: SchemaStatement): boolean {
  return /^CREATE |ADD CONSTRAINT /.test(statement.sql);
}

/** What is said of the statement's object, itself included: its settings, its comments. */
function belongings(statement: SchemaStatement, all: readonly SchemaStatement[]): readonly SchemaStatement[] {
  const name = statement.object.toLowerCase();
  return all.filter(
    (other) =>
      objectKey(other) === objectKey(statement) ||
      (other.kind === 'comment' && other.object.toLowerCase() === name) ||
      (other.kind === 'refresh' && other.object === statement.object),
  );
}

/** The statement that would take the object away, for a person to run. */
function dropSql(statement: SchemaStatement): string | null {
  const keyword = DROPPABLE[statement.kind];
  if (keyword === undefined || !statement.sql.startsWith('CREATE ')) return null;
  const at = statement.object.indexOf(' ');
  return `DROP ${statement.object.slice(0, at).toUpperCase()} ${statement.object.slice(at + 1)}`;
}

/**
 * A partition that is attached to a root with keys and indexes gets twins of its own, unless it has them already: there
 * its keys and indexes come first, then it is attached, then they are.
 */
function lateAttachments(
  was: readonly SchemaStatement[],
  added: readonly SchemaStatement[],
): readonly SchemaStatement[] {
  const existing = new Set(was.flatMap(({ shape }) => (shape?.of === 'table' ? [shape.name] : [])));
  const attachments = added.filter((statement) => {
    const root = /^ALTER TABLE (.*) DETACH PARTITION /s.exec(statement.undo ?? '')?.[1];
    return statement.kind === 'partition' && root !== undefined && existing.has(root);
  });
  const names = attachments.map((statement) => statement.object.slice('table '.length));
  const ofThese = (statement: SchemaStatement): boolean =>
    names.some((name) =>
      statement.kind === 'index'
        ? statement.sql.includes(` ON ${name} USING `) || statement.sql.includes(` ON ONLY ${name} USING `)
        : ['primary-key', 'constraint'].includes(statement.kind) && statement.object.endsWith(` on ${name}`),
    );
  const indexes = added.filter(ofThese);
  const joined =
    names.length === 0 ? [] : added.filter((one) => /^ALTER INDEX .* ATTACH PARTITION /s.test(one.sql));
  return [...indexes, ...attachments, ...joined];
}

/** `before`: the plan that the shadow was last brought to. `after`: the source's now. */
export function evolve(before: BuiltPlan, after: BuiltPlan): Evolution {
  const evolving = new Evolving();
  const was = [...before.beforeCopy, ...before.afterCopy];
  const is = [...after.beforeCopy, ...after.afterCopy];
  const wasKeys = new Set(was.map(keyOf));
  const isKeys = new Set(is.map(keyOf));
  const removed = was.filter((statement) => !isKeys.has(keyOf(statement)));
  const added = is.filter((statement) => !wasKeys.has(keyOf(statement)));
  const addedOf = grouped(added);

  /** New statements by which a change was carried over, at their own place among the others. */
  const changes = new Map<SchemaStatement, SchemaStatement>();
  const undone: SchemaStatement[] = [];
  for (const statement of removed) {
    const others = addedOf.get(objectKey(statement)) ?? [];
    const counterpart = others.find((other) => (other.shape?.of ?? '') === (statement.shape?.of ?? ''));
    const replaceable =
      counterpart !== undefined &&
      (statement.shape !== undefined || evolving.replacement(statement, counterpart) !== null);
    if (replaceable) {
      changes.set(counterpart, statement);
      continue;
    }
    // A materialised view's indexes and rows would go with it.
    const recreated = statement.kind === 'materialized-view' && others.length > 0;
    if (statement.undo !== undefined && !recreated) {
      undone.push(evolving.like(statement, statement.undo));
      // With an index or a view goes what else was said of it.
      evolving.forgotten.push(...(makes(statement) ? belongings(statement, was) : [statement]));
      continue;
    }
    const made = removed.some(
      (other) => objectKey(other) === objectKey(statement) && other.undo !== undefined && makes(other),
    );
    if (made || HARMLESS_REMOVALS.has(statement.kind)) {
      evolving.forgotten.push(statement);
      continue;
    }
    const gone = others.length === 0;
    evolving.refuse(statement, gone ? 'was dropped' : 'was changed', gone ? dropSql(statement) : null);
  }
  // Later things rest on earlier ones.
  evolving.undone.push(...undone.reverse());

  const addedEarly = new Set(after.beforeCopy);
  const attached = lateAttachments(was, added);
  for (const statement of added) {
    const old = changes.get(statement);
    if (old !== undefined) changed(evolving, old, statement);
    else if (addedEarly.has(statement) && !attached.includes(statement))
      evolving.statements.push(evolving.like(statement, statement.sql));
  }
  evolving.done.push(...attached);
  evolving.statements.push(...attached.map((statement) => evolving.like(statement, statement.sql)));
  return {
    first: evolving.first,
    statements: [...evolving.undone, ...evolving.statements],
    done: evolving.done,
    forgotten: evolving.forgotten,
    addedColumns: evolving.addedColumns,
    recopied: [...new Set(evolving.recopied)],
    obstacles: dedupe(evolving.obstacles),
  };
}

/** A table that was dropped takes its defaults, keys and sequences along: only the table is named. */
function dedupe(obstacles: readonly Obstacle[]): readonly Obstacle[] {
  const tables = obstacles.filter((one) => one.what === 'was dropped' && one.object.startsWith('table '));
  const names = tables.map((one) => one.object.slice('table '.length));
  const unique = new Map<string, Obstacle>();
  for (const one of obstacles) {
    const follows = names.some(
      (name) => one.object !== `table ${name}` && one.object.endsWith(` on ${name}`),
    );
    const key = `${one.object} ${one.what}`;
    if (!follows && !unique.has(key)) unique.set(key, one);
  }
  return [...unique.values()];
}
