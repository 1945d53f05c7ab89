/**
 * The admin port: health checks, status, operations.
 *
 * - `GET /livez`, `GET /readyz` are open to everyone who can reach the port; they tell nothing but yes or no.
 * - `GET /metrics` answers in Prometheus' text format, to whom /api would answer.
 * - `GET /api/status` answers one JSON document.
 * - `POST /api/<operation>` answers NDJSON, one event a line as it happens, the last line `{result}` or `{error}`.
 *   Once the stream has begun its status is 200 and the last line alone tells how it ended; an operation refused
 *   before its first event is answered with a status of its own. A client that hangs up does not cancel the
 *   operation, which goes on to its end: a broken terminal must not decide over a cutover.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import type { Log } from '../core/log.js';
import { UnderstudyError, asUnderstudyError, type ErrorCode } from '../core/errors.js';
import { checkHost, checkToken } from './access.js';
import { OPERATIONS, type AdminControl, type Operation, type OperationLine } from './control.js';
import { readOptions } from './requests.js';

export interface AdminSettings {
  readonly host: string;
  /** 0 takes a free port. */
  readonly port: number;
  readonly token?: string | undefined;
  /** Larger bodies are refused with 413. */
  readonly bodyBytesMax?: number;
  /** Time a client has to send its whole request. */
  readonly requestTimeoutMs?: number;
  readonly connectionsMax?: number;
}

const STATUS_OF: Partial<Record<ErrorCode, number>> = {
  'request-invalid': 400,
  'config-invalid': 400,
  'admin-unauthorized': 401,
  busy: 409,
  'preflight-blocked': 409,
  'not-cut-over': 409,
  'already-cut-over': 409,
  'other-proxy-alive': 409,
  'shadow-not-ready': 409,
  'verify-mismatch': 409,
  'catalog-changed': 409,
  'journal-conflict': 409,
  'session-pinned': 409,
  'limit-reached': 413,
  'source-unreachable': 503,
  'destination-unreachable': 503,
  'route-unknown': 503,
  'in-doubt': 503,
};

export class AdminServer {
  readonly #settings: AdminSettings;
  readonly #control: AdminControl;
  readonly #log: Log;
  readonly #server: Server;
  #port = 0;

  constructor(settings: AdminSettings, control: AdminControl, log: Log) {
    this.#settings = settings;
    this.#control = control;
    this.#log = log;
    const requestTimeout = settings.requestTimeoutMs ?? 10_000;
    this.#server = createServer({
      requestTimeout,
      headersTimeout: requestTimeout,
      keepAliveTimeout: 5000,
      maxHeaderSize: 16_384,
      connectionsCheckingInterval: Math.min(1000, requestTimeout),
    });
    this.#server.maxConnections = settings.connectionsMax ?? 100;
    this.#server.on('request', (request, response) => {
      this.#answer(request, response).catch((error: unknown) => this.#fail(response, error));
    });
  }

  /** The port it listens on. */
  get port(): number {
    return this.#port;
  }

  /** Throws `port-in-use`. */
  async start(): Promise<void> {
    const { host, port } = this.#settings;
    const listening = once(this.#server, 'listening');
    this.#server.listen(port, host);
    try {
      await listening;
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code ?? 'unknown error';
      throw new UnderstudyError('port-in-use', `admin port ${host}:${port}: ${code}`, {
        cause: error,
        advice: 'Choose another admin.port, or stop the process that holds it.',
      });
    }
    this.#port = (this.#server.address() as AddressInfo).port;
  }

  /** Ends idle connections at once and open answers with them. */
  async stop(): Promise<void> {
    if (!this.#server.listening) return;
    const closed = once(this.#server, 'close');
    this.#server.close();
    this.#server.closeIdleConnections();
    const reaper = setTimeout(() => this.#server.closeAllConnections(), 1000);
    await closed;
    clearTimeout(reaper);
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    response.setHeader('Cache-Control', 'no-store');
    response.setHeader('X-Content-Type-Options', 'nosniff');
    const path = (request.url ?? '/').split('?', 1)[0] ?? '/';
    if (path === '/livez') {
      sendJson(response, 200, { live: true });
      return;
    }
    if (path === '/readyz') {
      const { ready } = await this.#control.readiness();
      sendJson(response, ready ? 200 : 503, { ready });
      return;
    }
    const rules = { host: this.#settings.host, token: this.#settings.token };
    checkHost(request, rules);
    if (path === '/metrics') {
      checkToken(request, rules);
      if (!allowed(request, response, 'GET')) return;
      const text = await this.#control.metrics.text();
      response.writeHead(200, { 'Content-Type': this.#control.metrics.contentType });
      response.end(text);
      return;
    }
    if (!path.startsWith('/api/')) {
      sendJson(response, 404, { error: new UnderstudyError('request-invalid', 'no such page').toJSON() });
      return;
    }
    checkToken(request, rules);
    const name = path.slice('/api/'.length);
    if (name === 'status') {
      if (!allowed(request, response, 'GET')) return;
      sendJson(response, 200, await this.#control.status());
      return;
    }
    const operation = OPERATIONS.find((candidate) => candidate === name);
    if (operation === undefined) {
      sendJson(response, 404, {
        error: new UnderstudyError('request-invalid', 'no such operation').toJSON(),
      });
      return;
    }
    if (!allowed(request, response, 'POST')) return;
    await this.#operate(operation, request, response);
  }

  async #operate(operation: Operation, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const options = await readOptions(operation, request, this.#settings.bodyBytesMax ?? 65_536);
    this.#log.info({ operation, options }, 'operation asked for over the admin port');
    const emit = (line: OperationLine): void => {
      if (response.writableEnded || response.destroyed) return;
      if (!response.headersSent) response.writeHead(200, { 'Content-Type': 'application/x-ndjson' });
      response.write(`${JSON.stringify(line, textOfBigint)}\n`);
    };
    const result = await this.#control.operate(operation, options, emit, new AbortController().signal);
    emit({ result });
    response.end();
  }

  #fail(response: ServerResponse, thrown: unknown): void {
    const error = asUnderstudyError(thrown, 'internal', 'admin request');
    if (error.code === 'internal') this.#log.error({ error: error.message }, 'admin request failed');
    if (response.headersSent) {
      response.end(`${JSON.stringify({ error: error.toJSON() })}\n`);
      return;
    }
    if (error.code === 'admin-unauthorized') response.setHeader('WWW-Authenticate', 'Bearer');
    // What is left of an oversized body is not read.
    if (error.code === 'limit-reached') response.setHeader('Connection', 'close');
    sendJson(response, STATUS_OF[error.code] ?? 500, { error: error.toJSON() });
  }
}

function allowed(request: IncomingMessage, response: ServerResponse, method: 'GET' | 'POST'): boolean {
  if (request.method === method) return true;
  response.setHeader('Allow', method);
  sendJson(response, 405, { error: new UnderstudyError('request-invalid', `use ${method}`).toJSON() });
  return false;
}

function textOfBigint(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? value.toString() : value;
}

function sendJson(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { 'Content-Type': 'application/json' });
  response.end(`${JSON.stringify(body, textOfBigint)}\n`);
}
