/** Certificates for tests, made by the `openssl` program in a folder of their own. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export interface Pem {
  readonly certPem: string;
  readonly keyPem: string;
  readonly certPath: string;
  readonly keyPath: string;
}

export interface IssueOptions {
  /** `DNS:localhost` and the like. */
  readonly names?: string;
  /** Of the signature; sha256 where absent. */
  readonly digest?: string;
}

/** An authority that signs. Its own certificate is `certPem`. */
export class Authority implements Disposable, Pem {
  readonly folder = mkdtempSync(join(tmpdir(), 'understudy-ca-'));
  readonly certPath = join(this.folder, 'ca.pem');
  readonly keyPath = join(this.folder, 'ca-key.pem');
  readonly certPem: string;
  readonly keyPem: string;
  #issued = 0;

  /** `key`: what follows `openssl genpkey`. */
  constructor(key = '-algorithm EC -pkeyopt ec_paramgen_curve:prime256v1') {
    this.#openssl(`genpkey ${key} -out ${this.keyPath}`);
    this.#openssl(`req -x509 -new -key ${this.keyPath} -days 2 -subj /CN=authority -out ${this.certPath}`);
    this.certPem = readFileSync(this.certPath, 'utf8');
    this.keyPem = readFileSync(this.keyPath, 'utf8');
  }

  #openssl(command: string): void {
    execFileSync('openssl', command.split(' '), { stdio: 'ignore', cwd: this.folder });
  }

  /** A certificate whose common name is `name`. `more`: what is added to `openssl x509`. */
  issue(name: string, { names, digest = 'sha256' }: IssueOptions = {}, more: readonly string[] = []): Pem {
    const base = join(this.folder, `${(this.#issued += 1)}`);
    const [keyPath, requestPath, certPath] = [`${base}-key.pem`, `${base}.csr`, `${base}.pem`];
    this.#openssl(`genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out ${keyPath}`);
    this.#openssl(`req -new -key ${keyPath} -subj /CN=${name} -out ${requestPath}`);
    const extension = `${base}.ext`;
    writeFileSync(extension, names === undefined ? '' : `subjectAltName=${names}\n`);
    const sign = `x509 -req -in ${requestPath} -CA ${this.certPath} -CAkey ${this.keyPath} -CAcreateserial -days 2`;
    this.#openssl([sign, `-${digest} -extfile ${extension} -out ${certPath}`, ...more].join(' '));
    return {
      certPath,
      keyPath,
      certPem: readFileSync(certPath, 'utf8'),
      keyPem: readFileSync(keyPath, 'utf8'),
    };
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}

export const opensslMissing = ((): boolean => {
  try {
    execFileSync('openssl', ['version'], { stdio: 'ignore' });
    return false;
  } catch {
    return true;
  }
})();
