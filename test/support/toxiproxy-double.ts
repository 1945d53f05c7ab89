/**
 * Stands in for a Toxiproxy server: the same HTTP API (https://github.com/Shopify/toxiproxy#http-api) and the same
 * toxics, in this process, so that tests of failing networks need nothing installed.
 *
 * Where it does less: no metrics, no server flags; a direction that a `limit_data` has ended is closed while the other
 * one stays open until its own end.
 */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import net from 'node:net';
import { TOXIC_TYPES, ToxicPipe, type ToxicSpec } from './toxic-pipe.js';

const BODY_BYTES_MAX = 64 * 1024;

interface ProxyBody {
  readonly name?: string;
  readonly listen?: string;
  readonly upstream?: string;
  readonly enabled?: boolean;
}

class HttpProblem extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

function hostAndPort(address: string): { host: string; port: number } {
  const at = address.lastIndexOf(':');
  const port = Number(address.slice(at + 1));
  if (at < 0 || !Number.isInteger(port)) throw new HttpProblem(400, `bad address ${address}`);
  return { host: address.slice(0, at) || '127.0.0.1', port };
}

/** One listening port before one server. */
class ToxicProxy {
  readonly name: string;
  #listen: string;
  #upstream: string;
  #toxics: ToxicSpec[] = [];
  #server: net.Server | undefined;
  readonly #sockets = new Set<net.Socket>();
  readonly #pipes = new Set<ToxicPipe>();
  readonly #chance: () => number;

  constructor(name: string, listen: string, upstream: string, chance: () => number) {
    this.name = name;
    this.#listen = listen;
    this.#upstream = upstream;
    this.#chance = chance;
  }

  get json(): object {
    return {
      name: this.name,
      listen: this.#listen,
      upstream: this.#upstream,
      enabled: this.#server !== undefined,
      toxics: this.#toxics,
    };
  }

  async update(body: ProxyBody): Promise<void> {
    const moved =
      (body.listen !== undefined && body.listen !== this.#listen) ||
      (body.upstream !== undefined && body.upstream !== this.#upstream);
    const enabled = body.enabled ?? this.#server !== undefined;
    if (moved || !enabled) await this.stop();
    this.#listen = body.listen ?? this.#listen;
    this.#upstream = body.upstream ?? this.#upstream;
    if (enabled) await this.start();
  }

  async start(): Promise<void> {
    if (this.#server !== undefined) return;
    const server = net.createServer({ allowHalfOpen: true }, (client) => this.#onClient(client));
    const { host, port } = hostAndPort(this.#listen);
    server.listen(port, host);
    await once(server, 'listening');
    this.#server = server;
    this.#listen = `${host}:${(server.address() as net.AddressInfo).port}`;
  }

  /** Nobody gets through, and what is open is cut. */
  async stop(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    for (const socket of this.#sockets) socket.destroy();
    if (server === undefined) return;
    server.close();
    await once(server, 'close');
  }

  get toxics(): readonly ToxicSpec[] {
    return this.#toxics;
  }

  set toxics(toxics: readonly ToxicSpec[]) {
    this.#toxics = [...toxics];
    for (const pipe of this.#pipes) pipe.changed();
  }

  #onClient(client: net.Socket): void {
    const upstream = net.connect({ ...hostAndPort(this.#upstream), allowHalfOpen: true });
    const pipes = [this.#pipe(client, upstream, 'upstream'), this.#pipe(upstream, client, 'downstream')];
    for (const socket of [client, upstream]) {
      socket.setNoDelay(true);
      this.#sockets.add(socket);
      socket.on('error', () => socket.destroy());
      socket.on('close', (hadError) => {
        this.#sockets.delete(socket);
        const other = socket === client ? upstream : client;
        if (hadError) other.destroy();
        if (client.destroyed && upstream.destroyed) for (const pipe of pipes) this.#pipes.delete(pipe);
      });
    }
  }

  #pipe(from: net.Socket, to: net.Socket, stream: ToxicSpec['stream']): ToxicPipe {
    const own = (): readonly ToxicSpec[] => this.#toxics.filter((toxic) => toxic.stream === stream);
    const pipe = new ToxicPipe(from, to, own, this.#chance);
    this.#pipes.add(pipe);
    return pipe;
  }
}

export class ToxiproxyDouble implements AsyncDisposable {
  readonly #http: Server;
  readonly #proxies = new Map<string, ToxicProxy>();
  readonly #chance: () => number;

  private constructor(http: Server, chance: () => number) {
    this.#http = http;
    this.#chance = chance;
    http.on('request', (request, response) => void this.#answer(request, response));
  }

  /** `chance` draws from [0, 1) for toxicity, jitter and slices. */
  static async start(chance: () => number = Math.random): Promise<ToxiproxyDouble> {
    const http = createServer();
    http.listen(0, '127.0.0.1');
    await once(http, 'listening');
    return new ToxiproxyDouble(http, chance);
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#http.address() as net.AddressInfo).port}`;
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      const body = await readBody(request);
      const [status, value] = await this.#route(request.method ?? 'GET', request.url ?? '/', body);
      const text = typeof value === 'string' ? value : value === undefined ? '' : JSON.stringify(value);
      response.writeHead(status, { 'content-type': 'application/json' }).end(text);
    } catch (error) {
      const status = error instanceof HttpProblem ? error.status : 500;
      response.writeHead(status, { 'content-type': 'application/json' });
      response.end(JSON.stringify({ error: (error as Error).message, status }));
    }
  }

  async #route(method: string, url: string, body: unknown): Promise<readonly [number, unknown]> {
    const [head, name, tail, toxicName] = url.slice(1).split('/').map(decodeURIComponent);
    if (head === 'version') return [200, 'double'];
    if (head === 'reset' && method === 'POST') {
      for (const proxy of this.#proxies.values()) {
        proxy.toxics = [];
        await proxy.start();
      }
      return [204, undefined];
    }
    if (head === 'populate' && method === 'POST') {
      const proxies = [];
      for (const each of body as readonly ProxyBody[]) {
        if (each.name !== undefined) await this.#remove(each.name);
        proxies.push((await this.#create(each)).json);
      }
      return [201, { proxies }];
    }
    if (head !== 'proxies') throw new HttpProblem(404, 'not found');
    if (name === undefined) {
      if (method === 'POST') return [201, (await this.#create(body as ProxyBody)).json];
      return [200, Object.fromEntries([...this.#proxies].map(([key, proxy]) => [key, proxy.json]))];
    }
    const proxy = this.#proxies.get(name);
    if (proxy === undefined) throw new HttpProblem(404, 'proxy not found');
    if (tail === 'toxics') return toxicRoute(proxy, method, toxicName, body as Partial<ToxicSpec>);
    if (method === 'DELETE') {
      await this.#remove(name);
      return [204, undefined];
    }
    if (method === 'POST' || method === 'PATCH') await proxy.update(body as ProxyBody);
    return [200, proxy.json];
  }

  async #create({ name, listen = '127.0.0.1:0', upstream, enabled = true }: ProxyBody): Promise<ToxicProxy> {
    if (name === undefined || upstream === undefined) throw new HttpProblem(400, 'missing required field');
    if (this.#proxies.has(name)) throw new HttpProblem(409, 'proxy already exists');
    const proxy = new ToxicProxy(name, listen, upstream, this.#chance);
    if (enabled) await proxy.start();
    this.#proxies.set(name, proxy);
    return proxy;
  }

  async #remove(name: string): Promise<void> {
    await this.#proxies.get(name)?.stop();
    this.#proxies.delete(name);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const name of this.#proxies.keys()) await this.#remove(name);
    this.#http.closeAllConnections();
    this.#http.close();
    await once(this.#http, 'close');
  }
}

function toxicRoute(
  proxy: ToxicProxy,
  method: string,
  name: string | undefined,
  body: Partial<ToxicSpec>,
): readonly [number, unknown] {
  if (name === undefined) {
    if (method === 'GET') return [200, proxy.toxics];
    const toxic = newToxic(body);
    if (proxy.toxics.some((each) => each.name === toxic.name))
      throw new HttpProblem(409, 'toxic already exists');
    proxy.toxics = [...proxy.toxics, toxic];
    return [200, toxic];
  }
  const toxic = proxy.toxics.find((each) => each.name === name);
  if (toxic === undefined) throw new HttpProblem(404, 'toxic not found');
  if (method === 'GET') return [200, toxic];
  if (method === 'DELETE') {
    proxy.toxics = proxy.toxics.filter((each) => each !== toxic);
    return [204, undefined];
  }
  const changed = newToxic({
    ...toxic,
    ...body,
    name,
    attributes: { ...toxic.attributes, ...body.attributes },
  });
  proxy.toxics = proxy.toxics.map((each) => (each === toxic ? changed : each));
  return [200, changed];
}

function newToxic({
  name,
  type,
  stream = 'downstream',
  toxicity = 1,
  attributes = {},
}: Partial<ToxicSpec>): ToxicSpec {
  if (!TOXIC_TYPES.some((known) => known === type) || type === undefined) {
    throw new HttpProblem(400, 'invalid toxic type');
  }
  if (stream !== 'upstream' && stream !== 'downstream') throw new HttpProblem(400, 'stream was invalid');
  return { name: name ?? `${type}_${stream}`, type, stream, toxicity, attributes };
}

async function readBody(request: IncomingMessage): Promise<unknown> {
  let text = '';
  for await (const chunk of request) {
    text += String(chunk);
    if (text.length > BODY_BYTES_MAX) throw new HttpProblem(413, 'too large');
  }
  if (text === '') return undefined;
  try {
    return JSON.parse(text);
  } catch {
    throw new HttpProblem(400, 'bad JSON');
  }
}
