/**
 * Which databases clients may ask for, and what they are called on the server.
 *
 * One of them is the one being migrated. Sessions of all others go to the source and stay there: they are passed
 * through, and neither held nor moved.
 */

/** Client's name → server's name. The key `*` lets every name through that has no entry of its own. */
export type DatabaseNames = Readonly<Record<string, string>>;

export type Destined =
  /** The database being migrated: on whichever side leads. */
  | { readonly kind: 'managed' }
  /** Another of the source's databases, by its name there. */
  | { readonly kind: 'passed-through'; readonly database: string }
  | { readonly kind: 'unserved' };

/** `managed`: the name of the database being migrated, on the source. It can always be asked for by that name. */
export function destine(asked: string, managed: string, names: DatabaseNames): Destined {
  const named = Object.hasOwn(names, asked) && asked !== '*' ? names[asked] : undefined;
  const database = named ?? (asked === managed || Object.hasOwn(names, '*') ? asked : undefined);
  if (database === undefined) return { kind: 'unserved' };
  return database === managed ? { kind: 'managed' } : { kind: 'passed-through', database };
}
