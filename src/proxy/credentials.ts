/**
 * What the proxy keeps of a client's proof, to open further servers in the client's name without asking it again.
 * Lives in memory only, as long as the session; never logged.
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
  | { readonly kind: 'password'; readonly password: string }
  /** Opens only servers that ask for nothing. */
  | { readonly kind: 'none' };
