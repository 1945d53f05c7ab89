/**
 * One statement with parameters that no string can hold. pg puts a Bind message together in one buffer that it grows as
 * it goes, several times a value's size; here it goes to the socket in the pieces it is in.
 * https://www.postgresql.org/docs/current/protocol-message-formats.html#PROTOCOL-MESSAGE-FORMATS-BIND
 */
import type pg from 'pg';
import { statementError, type Session, type StatementPurpose } from './statement.js';

/** Text; or pieces of the type's binary form, which for `text` is its UTF-8. */
export type Parameter = string | readonly Buffer[];

const TEXT_OID = 25;

/** `{value}`, a `text[]` of one element, in binary: https://doxygen.postgresql.org/arrayfuncs_8c.html, array_recv. */
export function arrayOfOne(value: Buffer): readonly Buffer[] {
  const head = Buffer.alloc(24);
  // Dimensions, no NULL among them, the element's type, and of the one dimension its size and first index.
  [1, 0, TEXT_OID, 1, 1, value.length].forEach((word, index) => head.writeInt32BE(word, index * 4));
  return [head, value];
}

function int16(...values: readonly number[]): Buffer {
  const bytes = Buffer.alloc(values.length * 2);
  values.forEach((value, index) => bytes.writeInt16BE(value, index * 2));
  return bytes;
}

function int32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32BE(value);
  return bytes;
}

function sizeOf(pieces: readonly Buffer[]): number {
  return pieces.reduce((sum, piece) => sum + piece.length, 0);
}

/** The unnamed portal of the unnamed statement, all results as text. */
function bindMessage(parameters: readonly Parameter[]): readonly Buffer[] {
  const values = parameters.map((value) => (typeof value === 'string' ? [Buffer.from(value)] : value));
  const formats = parameters.map((value) => (typeof value === 'string' ? 0 : 1));
  const body = [
    Buffer.alloc(2),
    int16(formats.length, ...formats, values.length),
    ...values.flatMap((pieces) => [int32(sizeOf(pieces)), ...pieces]),
    int16(0),
  ];
  return [Buffer.from('B'), int32(sizeOf(body) + 4), ...body];
}

class LargeStatement implements pg.Submittable {
  readonly done: Promise<number>;
  /** pg overwrites it where a query timeout is configured. */
  callback = (): void => undefined;
  readonly #text: string;
  readonly #parameters: readonly Parameter[];
  #resolve: (rows: number) => void = () => undefined;
  #reject: (error: unknown) => void = () => undefined;
  #rows = 0;

  constructor(text: string, parameters: readonly Parameter[]) {
    this.#text = text;
    this.#parameters = parameters;
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
  }

  submit(connection: pg.Connection): void {
    const { stream } = connection;
    stream.cork();
    connection.parse({ text: this.#text, name: '', types: [] }, false);
    for (const piece of bindMessage(this.#parameters)) stream.write(piece);
    connection.execute({ portal: '', rows: '' }, false);
    connection.sync();
    stream.uncork();
  }

  handleCommandComplete(message: { readonly text: string }): void {
    // `INSERT 0 1`, `UPDATE 1`, `DELETE 1`
    this.#rows = Number(/ (\d+)$/.exec(message.text)?.[1] ?? 0);
  }

  handleReadyForQuery(): void {
    this.#resolve(this.#rows);
  }

  handleError(error: unknown): void {
    this.#reject(error);
  }
}

/**
 * Runs a statement that returns no rows; resolves with how many it wrote. Takes no memory for values but what they are
 * in. Throws `…-query-failed` or `…-unreachable`.
 */
export async function runLarge(
  session: Session,
  statement: { readonly text: string; readonly values: readonly Parameter[] },
  purpose: StatementPurpose,
): Promise<number> {
  const query = new LargeStatement(statement.text, statement.values);
  session.client.query(query);
  try {
    return await query.done;
  } catch (error) {
    throw statementError(session.side, error, purpose);
  }
}
