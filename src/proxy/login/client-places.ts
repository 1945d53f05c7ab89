/** How many clients there may be: in all, of one user, of one database. A place is taken before a backend is opened. */

export interface PlaceLimits {
  readonly maxClients: number;
  /** 0: no limit but `maxClients`. */
  readonly maxClientsPerUser: number;
  /** 0: no limit but `maxClients`. */
  readonly maxClientsPerDatabase: number;
}

export interface Place {
  readonly user: string;
  readonly database: string;
}

/** Where places are taken: here, or together with other processes. */
export interface Places {
  /** Takes a place; or returns the message, in PostgreSQL's words, for the 53300 the client is refused with. */
  take(place: Place, limits: PlaceLimits): string | null | Promise<string | null>;
  /** Gives a place back that was taken. */
  free(place: Place): void;
}

export class ClientPlaces implements Places {
  #taken = 0;
  readonly #byUser = new Map<string, number>();
  readonly #byDatabase = new Map<string, number>();

  take({ user, database }: Place, limits: PlaceLimits): string | null {
    if (this.#taken >= limits.maxClients) return 'sorry, too many clients already';
    if (isFull(this.#byUser, user, limits.maxClientsPerUser))
      return `too many connections for role "${user}"`;
    if (isFull(this.#byDatabase, database, limits.maxClientsPerDatabase))
      return `too many connections for database "${database}"`;
    this.#taken += 1;
    this.#byUser.set(user, (this.#byUser.get(user) ?? 0) + 1);
    this.#byDatabase.set(database, (this.#byDatabase.get(database) ?? 0) + 1);
    return null;
  }

  free({ user, database }: Place): void {
    this.#taken -= 1;
    subtract(this.#byUser, user);
    subtract(this.#byDatabase, database);
  }
}

function isFull(counts: ReadonlyMap<string, number>, name: string, max: number): boolean {
  return max > 0 && (counts.get(name) ?? 0) >= max;
}

function subtract(counts: Map<string, number>, name: string): void {
  const left = (counts.get(name) ?? 0) - 1;
  if (left > 0) counts.set(name, left);
  else counts.delete(name);
}
