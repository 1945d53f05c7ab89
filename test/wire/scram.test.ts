import { randomBytes } from 'node:crypto';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { UnderstudyError } from '../../src/core/errors.js';
import { checkMd5Response, isMd5Secret, md5Response, md5Secret } from '../../src/wire/postgres/md5.js';
import {
  checkScramPassword,
  deriveScramKeys,
  formatScramVerifier,
  parseScramVerifier,
  saslPrep,
  ScramClientExchange,
  ScramServerExchange,
} from '../../src/wire/postgres/scram.js';

// RFC 7677 §3.
const CLIENT_NONCE = 'rOprNGfwEbeRWgbNEkqO';
const SERVER_NONCE = '%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0';
const SALT = Buffer.from('W22ZaJ0SNY7soEsUEjb6gQ==', 'base64');
const SERVER_FIRST = `r=${CLIENT_NONCE}${SERVER_NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096`;
const CLIENT_FINAL = `c=biws,r=${CLIENT_NONCE}${SERVER_NONCE},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=`;
const SERVER_FINAL = 'v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=';

async function verifierOf(password: string) {
  return { ...(await deriveScramKeys(password, SALT, 4096)), salt: SALT, iterations: 4096 };
}

test('the client’s side says what RFC 7677’s example says', async () => {
  const exchange = new ScramClientExchange(CLIENT_NONCE, 'n', 'user');
  expect(exchange.first()).toBe(`n,,n=user,r=${CLIENT_NONCE}`);
  expect(exchange.readChallenge(SERVER_FIRST)).toEqual({ salt: SALT, iterations: 4096 });
  expect(exchange.prove(await deriveScramKeys('pencil', SALT, 4096))).toBe(CLIENT_FINAL);
  expect(exchange.accepts(SERVER_FINAL)).toBe(true);
  expect(exchange.accepts('v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=')).toBe(false);
  expect(exchange.accepts('e=invalid-proof')).toBe(false);
});

test('the server’s side says what RFC 7677’s example says, and learns the client’s key', async () => {
  const verifier = await verifierOf('pencil');
  const exchange = new ScramServerExchange(verifier, SERVER_NONCE);
  expect(exchange.challenge(`n,,n=user,r=${CLIENT_NONCE}`)).toBe(SERVER_FIRST);
  expect(exchange.finish(CLIENT_FINAL)).toEqual({ clientKey: verifier.clientKey, serverFinal: SERVER_FINAL });
});

test('the key learned from one client’s proof opens another server with the same verifier', async () => {
  const { salt, iterations, storedKey, serverKey } = await verifierOf('pencil');
  const verifier = { salt, iterations, storedKey, serverKey };
  const proxy = new ScramServerExchange(verifier, SERVER_NONCE);
  proxy.challenge(`n,,n=user,r=${CLIENT_NONCE}`);
  const clientKey = proxy.finish(CLIENT_FINAL)?.clientKey ?? Buffer.alloc(32);

  const second = new ScramServerExchange(verifier, 'another-nonce');
  const client = new ScramClientExchange('third-nonce');
  client.readChallenge(second.challenge(client.first()));
  const answer = second.finish(client.prove({ clientKey, storedKey, serverKey }));
  expect(client.accepts(answer?.serverFinal ?? '')).toBe(true);
});

test('a wrong password proves nothing, whatever the password', async () => {
  await fc.assert(
    fc.asyncProperty(fc.string(), fc.string(), async (right, tried) => {
      const [stored, keys] = await Promise.all([
        deriveScramKeys(right, SALT, 1),
        deriveScramKeys(tried, SALT, 1),
      ]);
      const server = new ScramServerExchange({ ...stored, salt: SALT, iterations: 1 }, 's');
      const client = new ScramClientExchange('c');
      client.readChallenge(server.challenge(client.first()));
      expect(server.finish(client.prove(keys)) !== null).toBe(saslPrep(right) === saslPrep(tried));
    }),
  );
});

test.each([
  ['binds a channel', `p=tls-server-end-point,,n=,r=abc`, '08P01'],
  ['has another flag', `x,,n=,r=abc`, '08P01'],
  ['names an identity', `n,a=root,n=,r=abc`, '0A000'],
  ['wants an extension', `n,,m=x,n=,r=abc`, '0A000'],
  ['has no name', `n,,r=abc`, '08P01'],
  ['has no nonce', `n,,n=`, '08P01'],
  ['has an empty nonce', `n,,n=,r=`, '08P01'],
  ['has a nonce that is not printable', `n,,n=,r=a\tb`, '08P01'],
  ['is empty', '', '08P01'],
])('a first message that %s is refused', async (_what, message, sqlState) => {
  const exchange = new ScramServerExchange(await verifierOf('pencil'), SERVER_NONCE);
  try {
    exchange.challenge(message);
    expect.unreachable();
  } catch (error) {
    expect(error).toBeInstanceOf(UnderstudyError);
    expect((error as UnderstudyError).details['sqlState']).toBe(sqlState);
  }
});

test('a client that could bind a channel and sees none offered is believed, and held to what it said', async () => {
  const verifier = await verifierOf('pencil');
  const final = (flag: string, said: string): string => {
    const exchange = new ScramServerExchange(verifier, SERVER_NONCE);
    exchange.challenge(`${flag},,n=,r=${CLIENT_NONCE}`);
    const proof = Buffer.alloc(32).toString('base64');
    exchange.finish(`c=${Buffer.from(said).toString('base64')},r=${CLIENT_NONCE}${SERVER_NONCE},p=${proof}`);
    return 'read';
  };
  expect(final('y', 'y,,')).toBe('read');
  expect(final('n', 'n,,')).toBe('read');
  expect(() => final('y', 'n,,')).toThrow(/channel-binding/);
  expect(() => final('n', 'y,,')).toThrow(/channel-binding/);
});

test('a final message with another nonce, no proof or a damaged one is malformed', async () => {
  const exchange = new ScramServerExchange(await verifierOf('pencil'), SERVER_NONCE);
  exchange.challenge(`n,,n=,r=${CLIENT_NONCE}`);
  const nonce = CLIENT_NONCE + SERVER_NONCE;
  for (const message of ['', `c=biws,r=${nonce}`, `c=biws,r=${nonce},p=AAAA`, `c=biws,r=${nonce},p=!`]) {
    expect(() => exchange.finish(message), message).toThrow(UnderstudyError);
  }
  expect(() => exchange.finish(CLIENT_FINAL.replace(nonce, `${nonce}x`))).toThrow(UnderstudyError);
});

test('a challenge that is not an answer to ours is malformed', () => {
  for (const challenge of [
    '',
    `r=${CLIENT_NONCE},s=AAAA,i=4096`,
    'r=somebody-else,s=AAAA,i=4096',
    `r=${CLIENT_NONCE}x,s=,i=4096`,
    `r=${CLIENT_NONCE}x,s=AAAA,i=0`,
    `r=${CLIENT_NONCE}x,s=AAAA,i=2000000000`,
  ]) {
    const exchange = new ScramClientExchange(CLIENT_NONCE);
    expect(() => exchange.readChallenge(challenge), challenge).toThrow(UnderstudyError);
  }
});

test('verifiers keep their text form, and nothing else is taken for one', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 1e9 }),
      fc.uint8Array({ minLength: 1, maxLength: 32 }),
      (i, salt) => {
        const verifier = {
          iterations: i,
          salt: Buffer.from(salt),
          storedKey: randomBytes(32),
          serverKey: randomBytes(32),
        };
        expect(parseScramVerifier(formatScramVerifier(verifier))).toEqual(verifier);
      },
    ),
  );
  for (const text of ['', 'secret', 'SCRAM-SHA-256$4096:AAAA$AAAA:AAAA', 'SCRAM-SHA-256$0:AAAA$A:B']) {
    expect(parseScramVerifier(text), text).toBeNull();
  }
});

test('passwords are normalised as SASLprep says', () => {
  expect(saslPrep('I\u00ADX')).toBe('IX');
  expect(saslPrep('user')).toBe('user');
  expect(saslPrep('\u00AA')).toBe('a');
  expect(saslPrep('\u2168')).toBe('IX');
  expect(saslPrep('a\u00A0b')).toBe('a b');
  // Prohibited: used as it is, as PostgreSQL does.
  expect(saslPrep('\u2168\u0007')).toBe('\u2168\u0007');
  expect(saslPrep('plain\tascii')).toBe('plain\tascii');
});

test('a password is held against a verifier', async () => {
  const verifier = await verifierOf('pencil');
  expect(await checkScramPassword(verifier, 'pencil')).toBe(true);
  expect(await checkScramPassword(verifier, 'Pencil')).toBe(false);
});

test('MD5 responses prove the stored hash', () => {
  const stored = md5Secret('alice', 'pencil');
  expect(stored).toBe('md5ee69efad287c7423caf0b3229d71f567');
  expect(isMd5Secret(stored)).toBe(true);
  expect(isMd5Secret(`${stored}0`)).toBe(false);
  const salt = Buffer.from([1, 2, 3, 4]);
  expect(checkMd5Response(stored, salt, Buffer.from(md5Response(stored, salt)))).toBe(true);
  expect(checkMd5Response(stored, Buffer.from([1, 2, 3, 5]), Buffer.from(md5Response(stored, salt)))).toBe(
    false,
  );
  expect(checkMd5Response(stored, salt, Buffer.alloc(0))).toBe(false);
});
