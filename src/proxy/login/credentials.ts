/**
 * What the proxy keeps of a client's proof, to open further servers in the client's name without asking it again.
 * Lives in memory only, as long as the session, and is wiped with it: who needs it longer keeps a copy. Never logged.
 */

export type BackendCredentials =
  | {
      /**
       * Taken from the client's SCRAM proof. Opens every server that holds the *same* verifier (same salt and
       * iterations), and no other: the password itself is not known. RFC 5802 §9 names this property.
       */
      readonly kind: 'scram-keys';
      readonly clientKey: Buffer;
      readonly storedKey: Buffer;
      readonly serverKey: Buffer;
      readonly salt: Buffer;
      readonly iterations: number;
      /** The verifier as the server stores it, `SCRAM-SHA-256$…`; to compare both sides' before a move. */
      readonly verifier: string;
    }
  /** `md5` and 32 hex digits, which is all an MD5 exchange needs. */
  | { readonly kind: 'md5'; readonly hash: string }
  /** From the users file, which holds it for as long as the process runs. */
  | { readonly kind: 'password'; readonly password: string }
  | {
      /** The bytes a client gave in the clear, in its own encoding. */
      readonly kind: 'given-password';
      readonly password: Buffer;
      /** False until it was checked: a server that asks for nothing has not checked it either, and is not enough. */
      proven: boolean;
    }
  /** Opens only servers that ask for nothing, or for the proxy's own certificate. */
  | { readonly kind: 'none' };

export function passwordOf(credentials: BackendCredentials): string | Buffer | undefined {
  return credentials.kind === 'password' || credentials.kind === 'given-password'
    ? credentials.password
    : undefined;
}

/** Overwrites what the session alone held. Copies that the runtime made on the way are beyond reach. */
export function wipeCredentials(credentials: BackendCredentials): void {
  if (credentials.kind === 'given-password') credentials.password.fill(0);
  if (credentials.kind === 'scram-keys') credentials.clientKey.fill(0);
}
