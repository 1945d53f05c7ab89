import { defineConfig } from 'vitest/config';
import { fileURLToPath } from 'node:url';

export default defineConfig({
  resolve: { alias: { understudy: fileURLToPath(new URL('dist/index.js', import.meta.url)) } },
  test: {
    include: ['test/**/*.test.ts'],
    globalSetup: ['test/support/global-setup.ts'],
    pool: 'forks',
    // A process for each file would spend a tenth of the whole on loading the same modules again.
    isolate: false,
    // Most of a test's time is waiting for a server.
    maxWorkers: 3,
    // They end what hangs; a machine that is busy must not meet them.
    testTimeout: 180_000,
    hookTimeout: 180_000,
    server: { deps: { external: [/\/dist\//] } },
  },
  // `await using` is lowered for Node 20, which has no explicit resource management.
  oxc: { target: 'es2022' },
});
