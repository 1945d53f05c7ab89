/** A peer's process: started in its own folder, awaited until it listens, killed at the end. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { connect } from 'node:net';

export class Peer implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly pid: number;
  readonly port: number;

  private constructor(child: ChildProcess, pid: number, port: number) {
    this.#child = child;
    this.pid = pid;
    this.port = port;
  }

  /** Resolves once it accepts connections on `port`; throws with what it said where it ends before. */
  static async start(
    program: string,
    args: readonly string[],
    at: { readonly folder: string; readonly port: number },
  ): Promise<Peer> {
    const child = spawn(program, args, { cwd: at.folder, stdio: ['ignore', 'pipe', 'pipe'] });
    let said = '';
    const listen = (chunk: Buffer): void => {
      said = `${said}${chunk.toString()}`.slice(-2000);
    };
    child.stdout.on('data', listen);
    child.stderr.on('data', listen);
    await once(child, 'spawn');
    const peer = new Peer(child, child.pid ?? 0, at.port);
    try {
      await peer.#untilListening();
    } catch (error) {
      await peer[Symbol.asyncDispose]();
      throw new Error(`${program} does not listen: ${said}`, { cause: error });
    }
    return peer;
  }

  async #untilListening(): Promise<void> {
    for (let attempt = 0; attempt < 100; attempt++) {
      if (this.#child.exitCode !== null) throw new Error(`ended with ${this.#child.exitCode}`);
      const socket = connect(this.port, '127.0.0.1');
      try {
        await once(socket, 'connect');
        return;
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 50));
      } finally {
        socket.destroy();
      }
    }
    throw new Error('no connection within 5 s');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const exited = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await exited;
  }
}
