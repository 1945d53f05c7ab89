/** Speaks to a running process over its admin port. Only one operation's stream is read at a time. */
import { request as httpRequest, type IncomingMessage } from 'node:http';
import { createInterface } from 'node:readline';
import { UnderstudyError, type SerializedError } from '../core/errors.js';
import type { Operation, OperationLine, OperationOptions, StatusReport } from '../admin/control.js';

export interface AdminAddress {
  readonly host: string;
  readonly port: number;
  readonly token?: string | undefined;
}

export class AdminClient {
  readonly #address: AdminAddress;

  constructor(address: AdminAddress) {
    this.#address = address;
  }

  /** Throws `admin-unreachable`, `admin-unauthorized`. */
  async status(): Promise<StatusReport> {
    const response = await this.#send('GET', '/api/status', undefined);
    const chunks: Buffer[] = [];
    for await (const chunk of response as AsyncIterable<Buffer>) chunks.push(chunk);
    const body = this.#parse(Buffer.concat(chunks).toString('utf8'));
    if (response.statusCode !== 200) throw this.#errorOf(body, response.statusCode);
    return body as StatusReport;
  }

  /**
   * Runs an operation and hands on its progress; resolves with its result. Throws the operation's own error, or
   * `admin-unreachable` where the process went away: the operation may then have ended either way.
   */
  async operate(
    operation: Operation,
    options: OperationOptions,
    onLine: (line: OperationLine) => void,
    signal?: AbortSignal,
  ): Promise<unknown> {
    const response = await this.#send('POST', `/api/${operation}`, JSON.stringify(options), signal);
    try {
      for await (const text of createInterface({ input: response })) {
        if (text === '') continue;
        const line = this.#parse(text);
        if (line !== null && typeof line === 'object') {
          if ('error' in line) throw UnderstudyError.fromJSON(line.error as SerializedError);
          if ('result' in line) return line.result;
        }
        onLine(line as OperationLine);
      }
    } catch (error) {
      if (error instanceof UnderstudyError) throw error;
      throw this.#lost(operation, error);
    }
    throw this.#lost(operation, undefined);
  }

  #lost(operation: Operation, cause: unknown): UnderstudyError {
    return new UnderstudyError('admin-unreachable', `the process went away during ${operation}`, {
      cause,
      advice:
        'Start it again with `understudy run`: it finishes or undoes the operation. `understudy status` tells which.',
    });
  }

  #errorOf(body: unknown, status: number | undefined): UnderstudyError {
    if (typeof body === 'object' && body !== null && 'error' in body)
      return UnderstudyError.fromJSON(body.error as SerializedError);
    return new UnderstudyError('admin-unreachable', `the admin port answered HTTP ${status ?? 0}`);
  }

  #parse(text: string): unknown {
    try {
      return JSON.parse(text);
    } catch (error) {
      const { host, port } = this.#address;
      throw new UnderstudyError('admin-unreachable', `what answers on ${host}:${port} is not Understudy`, {
        cause: error,
        advice: 'Check admin.host and admin.port, or --admin-url.',
      });
    }
  }

  #send(
    method: 'GET' | 'POST',
    path: string,
    body: string | undefined,
    signal?: AbortSignal,
  ): Promise<IncomingMessage> {
    const { host, port, token } = this.#address;
    return new Promise((resolve, reject) => {
      const request = httpRequest({
        host,
        port,
        method,
        path,
        agent: false,
        ...(signal === undefined ? {} : { signal }),
        headers: {
          ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
          ...(body === undefined
            ? {}
            : { 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(body)) }),
        },
      });
      // The connection, not the answer: an operation may say nothing for long.
      request.on('socket', (socket) => {
        socket.setTimeout(5000, () => {
          if (socket.connecting) request.destroy(new Error('no answer within 5 s'));
        });
      });
      request.on('response', resolve);
      request.on('error', (error: NodeJS.ErrnoException) => {
        if (signal?.aborted === true) reject(new UnderstudyError('cancelled', 'interrupted'));
        else
          reject(
            new UnderstudyError(
              'admin-unreachable',
              `nothing answers on http://${host}:${port} (${error.code ?? error.message})`,
              {
                cause: error,
                advice:
                  'Start it with `understudy run`, or name the running process by --admin-url, admin.host and admin.port.',
              },
            ),
          );
      });
      request.end(body);
    });
  }
}
