import { expect, test } from 'vitest';
import { ThreadShadow } from '../../src/app/thread-shadow.js';
import { systemClock } from '../../src/core/clock.js';
import { UnderstudyError } from '../../src/core/errors.js';
import type { ShadowControl, ShadowStatus } from '../../src/core/ports.js';

const FOLLOWING: ShadowStatus = {
  phase: 'following',
  tables: [],
  copy: { rows: 1, seconds: 1 },
  streams: [
    {
      direction: 'forward',
      connected: true,
      committed: '0/1',
      lagBytes: 0,
      lagMs: 0,
      transactionsApplied: 0,
      changesApplied: 0,
      authoritative: true,
    },
  ],
  lastVerify: null,
  error: null,
};

test('a thread that falls silent leaves the lag unknown, not zero', async () => {
  let answers = true;
  const current = {
    status: () => (answers ? Promise.resolve(FOLLOWING) : new Promise<ShadowStatus>(() => undefined)),
  } as unknown as ShadowControl;
  const shadow = new ThreadShadow(
    { current, lastError: undefined, idlePhase: 'connecting' },
    systemClock,
    20,
  );
  expect(await shadow.status()).toEqual(FOLLOWING);
  answers = false;
  const silent = await shadow.status();
  expect(silent.streams[0]).toMatchObject({ lagBytes: null, lagMs: null });
  expect(silent.error).toMatchObject({ code: 'shadow-not-ready' });
});

test('no thread: status says why, everything else is refused as not ready', async () => {
  const lastError = new UnderstudyError('internal', 'the shadow thread ended', { advice: 'Wait.' });
  const shadow = new ThreadShadow({ current: undefined, lastError, idlePhase: 'connecting' }, systemClock);
  expect(await shadow.status()).toMatchObject({ phase: 'connecting', error: { code: 'internal' } });
  await expect(shadow.tables()).rejects.toMatchObject({ code: 'shadow-not-ready' });
  await expect(shadow.verifyRecent('forward', new AbortController().signal)).rejects.toMatchObject({
    code: 'shadow-not-ready',
  });
});
