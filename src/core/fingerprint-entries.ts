/** Entries of a {@link import('./ports.js').CatalogFingerprint} that tell which rows a table has, and not how it is defined. */

/**
 * Such an entry counts where both readings have it: a table or a column that came or went changes its table's own entry,
 * and readings that an older version recorded have none of these.
 */
export function tellsOfRows(object: string): boolean {
  return /^(rows of|column) /.test(object);
}
