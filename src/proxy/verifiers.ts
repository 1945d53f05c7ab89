/** Where the proxy finds what to hold a client's proof against. */

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
  | { readonly kind: 'plain'; readonly password: string };

export interface VerifierSource {
  /** The role's secret; null where the role is unknown, has no password, or its password has expired.
   *  Throws an `UnderstudyError` where that can't be found out. */
  lookup(user: string): Promise<StoredSecret | null>;
}
