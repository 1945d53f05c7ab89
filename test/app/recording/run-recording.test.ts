import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { tmpdir } from 'node:os';
import { expect, test } from 'vitest';
import { startRecorder } from '../../../src/app/recording/run-recording.js';
import { silentLog } from '../../../src/core/log.js';

test.each(['transaction', 'pipelined'] as const)(
  'a recording that would stay empty, in %s mode, is refused before its file is made',
  async (poolMode) => {
    const record = join(tmpdir(), `understudy-never-${process.pid}-${poolMode}.rec`);
    await expect(
      startRecorder(
        { record, recordMaxBytes: 0 },
        { poolMode: 'session', poolModes: { shop: poolMode } },
        silentLog,
      ),
    ).rejects.toMatchObject({
      code: 'config-invalid',
    });
    expect(existsSync(record)).toBe(false);
  },
);
