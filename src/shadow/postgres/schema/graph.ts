/**
 * Puts the statements of a schema in an order that the server accepts.
 *
 * A node is one object with the statements that make it. Edges come from pg_depend; a node lists as `aliases` every
 * catalog entry that it stands for (a table: its row type, that type's array, its inlined constraints), so that a
 * dependency on any of these is one on the node. Order: depth first, nodes visited by rank and name, so that what
 * nothing forces elsewhere stays grouped by kind. Whatever a node built before the copy needs is built before it too.
 */
import type { Finding } from '../../../core/ports.js';
import type { SchemaStatement } from './plan.js';

/** Catalog and oid, as `pg_class:16384`, or a name of a reader's own for what has no catalog entry. */
export type NodeId = string;

export interface SchemaNode {
  readonly id: NodeId;
  readonly aliases: readonly NodeId[];
  readonly phase: 'before-copy' | 'after-copy';
  /** Position among the kinds, see {@link RANK}. */
  readonly rank: number;
  readonly statements: readonly SchemaStatement[];
  /** Needed beside what pg_depend says. */
  readonly needs: readonly NodeId[];
}

/** Where nothing forces another order. */
export const RANK = {
  schema: 0,
  extension: 1,
  collation: 2,
  type: 3,
  routine: 4,
  textSearch: 5,
  operator: 6,
  operatorMembers: 6.5,
  sequence: 7,
  table: 8,
  sequenceOwner: 9,
  default: 10,
  check: 11,
  attach: 12,
  primaryKey: 13,
  indexAttach: 14,
  replicaIdentity: 15,
  constraint: 20,
  index: 21,
  statistics: 23,
  view: 24,
  rule: 26,
  lateCheck: 27,
  foreignKey: 28,
  trigger: 29,
  policy: 30,
  validate: 31,
  refresh: 32,
} as const;

export interface DependencyEdge {
  readonly from: NodeId;
  readonly to: NodeId;
}

export interface OrderedSchema {
  readonly beforeCopy: readonly SchemaStatement[];
  readonly afterCopy: readonly SchemaStatement[];
  /** Nodes left out because they need something that can't be carried. */
  readonly dropped: ReadonlySet<NodeId>;
  readonly findings: readonly Finding[];
}

/** A matview's refresh reads the matviews it selects from: they are refreshed first. See {@link refreshId}. */
export function refreshId(matview: NodeId): NodeId {
  return `refresh:${matview}`;
}

function describe(node: SchemaNode): string {
  return node.statements[0]?.object ?? node.id;
}

class Graph {
  readonly #nodes = new Map<NodeId, SchemaNode>();
  readonly #canonical = new Map<NodeId, NodeId>();
  readonly #needs = new Map<NodeId, Set<NodeId>>();

  constructor(nodes: readonly SchemaNode[], edges: readonly DependencyEdge[]) {
    for (const node of nodes) {
      this.#nodes.set(node.id, node);
      for (const alias of [node.id, ...node.aliases]) this.#canonical.set(alias, node.id);
    }
    const all = [...edges];
    for (const node of nodes) all.push(...node.needs.map((to) => ({ from: node.id, to })));
    for (const edge of all) {
      const from = this.#canonical.get(edge.from) ?? edge.from;
      const to = this.#canonical.get(edge.to) ?? edge.to;
      if (from === to || !this.#nodes.has(from)) continue;
      const needs = this.#needs.get(from) ?? new Set();
      needs.add(to);
      this.#needs.set(from, needs);
    }
    this.#orderRefreshes();
  }

  #orderRefreshes(): void {
    for (const node of this.#nodes.values()) {
      if (!node.id.startsWith('refresh:')) continue;
      const own = node.id.slice('refresh:'.length);
      for (const reached of this.closure([own])) {
        const other = refreshId(reached);
        if (reached !== own && this.#nodes.has(other)) this.#needs.get(node.id)?.add(other);
      }
    }
  }

  /** `starts` and everything they need, directly or not. */
  closure(starts: Iterable<NodeId>): Set<NodeId> {
    const reached = new Set<NodeId>();
    const open = [...starts];
    for (let id = open.pop(); id !== undefined; id = open.pop()) {
      if (reached.has(id)) continue;
      reached.add(id);
      open.push(...(this.#needs.get(id) ?? []));
    }
    return reached;
  }

  /** Nodes that can't be built because they need, directly or not, one of `missing`; with that one. */
  blockedBy(missing: ReadonlyMap<NodeId, string>): Map<SchemaNode, string> {
    const blocked = new Map<SchemaNode, string>();
    if (missing.size === 0) return blocked;
    for (const node of this.#nodes.values()) {
      for (const id of this.closure([node.id])) {
        const what = missing.get(id);
        if (what !== undefined) blocked.set(node, what);
      }
    }
    return blocked;
  }

  /** Nodes in order, and the loops that had to be cut. */
  sort(): { readonly order: readonly SchemaNode[]; readonly loops: readonly string[] } {
    const order: SchemaNode[] = [];
    const loops: string[] = [];
    const state = new Map<NodeId, 'open' | 'done'>();
    const byRank = (a: SchemaNode, b: SchemaNode): number =>
      a.rank - b.rank || (describe(a) < describe(b) ? -1 : describe(a) > describe(b) ? 1 : 0);
    const neededNodes = (node: SchemaNode): SchemaNode[] =>
      [...(this.#needs.get(node.id) ?? [])]
        .flatMap((id) => this.#nodes.get(id) ?? [])
        .sort(byRank)
        .reverse();
    // An explicit stack: a chain of dependencies may be longer than the call stack is deep.
    for (const root of [...this.#nodes.values()].sort(byRank)) {
      const stack = [{ node: root, todo: neededNodes(root), entered: false }];
      for (let top = stack.at(-1); top !== undefined; top = stack.at(-1)) {
        if (!top.entered) {
          if (state.has(top.node.id)) {
            stack.pop();
            continue;
          }
          top.entered = true;
          state.set(top.node.id, 'open');
        }
        const next = top.todo.pop();
        if (next === undefined) {
          state.set(top.node.id, 'done');
          order.push(top.node);
          stack.pop();
        } else if (state.get(next.id) === 'open') {
          loops.push(`${describe(top.node)} and ${describe(next)}`);
        } else if (!state.has(next.id)) {
          stack.push({ node: next, todo: neededNodes(next), entered: false });
        }
      }
    }
    return { order, loops };
  }
}

/** `missing`: catalog entries that can't be carried, with a name for each. */
export function orderSchema(
  nodes: readonly SchemaNode[],
  edges: readonly DependencyEdge[],
  missing: ReadonlyMap<NodeId, string>,
): OrderedSchema {
  const graph = new Graph(nodes, edges);
  const blocked = graph.blockedBy(missing);
  const { order, loops } = graph.sort();
  const before = graph.closure(nodes.filter((node) => node.phase === 'before-copy').map((node) => node.id));
  const kept = order.filter((node) => !blocked.has(node));
  const findings: Finding[] = [...blocked].map(([node, what]) => ({
    severity: node.phase === 'before-copy' ? 'blocker' : 'warning',
    check: 'schema-unsupported',
    side: 'source',
    object: describe(node),
    message: `${describe(node)} needs ${what}, which can’t be carried to the destination, so it is left out too.`,
    advice: `Create ${what} and ${describe(node)} on the destination by hand, or drop them on the source.`,
  }));
  for (const loop of loops) {
    findings.push({
      severity: 'warning',
      check: 'schema-dependency-loop',
      side: 'source',
      object: loop,
      message: `${loop} need each other; the destination may refuse to build the first without the second.`,
      advice: 'Break the loop on the source, e.g. by dropping and adding the default or constraint later.',
    });
  }
  return {
    beforeCopy: kept.filter((node) => before.has(node.id)).flatMap((node) => node.statements),
    afterCopy: kept.filter((node) => !before.has(node.id)).flatMap((node) => node.statements),
    dropped: new Set([...blocked.keys()].flatMap((node) => [node.id, ...node.aliases])),
    findings,
  };
}
