import { describe, expect, test } from 'vitest';
import { ResponseTracker } from '../../../src/proxy/session/response-tracker.js';

const I = 0x49;
const T = 0x54;

/** Plays letters: capitals of the protocol to the server before `|`, to the client after it. */
function play(tracker: ResponseTracker, script: string): void {
  for (const [index, part] of script.split('|').entries()) {
    for (const letter of part.replaceAll(' ', '')) (index % 2 === 0 ? sent : got)(tracker, letter);
  }
}

function sent(tracker: ResponseTracker, letter: string): void {
  if ('PBDEC'.includes(letter)) tracker.sentExtended();
  else if (letter === 'S') tracker.sentSync();
  else if (letter === 'Q') tracker.sentQuery();
  else if (letter === 'F') tracker.sentFunctionCall();
  else if ('cf'.includes(letter)) tracker.sentCopyEnd();
  else if (letter === 'q') tracker.sentOwn('own-query');
  else if (letter === 's') tracker.sentOwn('own-sync');
  else throw new Error(letter);
}

function got(tracker: ResponseTracker, letter: string): void {
  if ('123Tn'.includes(letter)) tracker.gotResponse();
  else if (letter === 'C') {
    tracker.gotStatementEnd();
    tracker.gotResponse();
  } else if (letter === 'E') tracker.gotError();
  else if (letter === 'G') tracker.gotCopyIn();
  else if (letter === 'H') tracker.gotCopyOut();
  else if (letter === 'Z') tracker.gotReady(I);
  else if (letter === 'z') tracker.gotReady(T);
  else throw new Error(letter);
}

describe('quiescent after exactly the last answer', () => {
  test.each([
    'Q|TCZ',
    'PBDES|12TCZ',
    'PBES PBES Q F|12CZ 12CZ CZ Z',
    'PBES|EZ',
    'PBES PBES|12EZ 12CZ',
    // Skipped behind an error: no answer of its own.
    'PBQS|EZ',
    'PBEQ|12CCZ',
    // COPY.
    'Q|G|c|CZ',
    'Q c|GCZ',
    'Q c|EZ',
    'PBES|12G|cS|CZ',
    'PBESScS|12GCZ',
    'PBES|12G|SScS|CZ',
    'PBESfS PBEScS|12GEZ 12GCZ',
    'PBES|12GE|cS|Z',
    'PBEScS|12EZZ',
    'Q|HCZ',
    // The proxy's own, before the client's.
    'qs PBES|Z Z 12CZ',
  ])('%s', (script) => {
    const tracker = new ResponseTracker();
    const last = script.lastIndexOf('|') + 1;
    play(tracker, script.slice(0, script.length - 1));
    expect([last > 0, tracker.quiescent]).toEqual([true, false]);
    got(tracker, 'Z');
    expect(tracker.quiescent).toBe(true);
    expect(tracker.answered).toBe(tracker.sent);
  });
});

test('a half-sent pipeline is not settled, however much of it was answered', () => {
  const tracker = new ResponseTracker();
  play(tracker, 'PBE|12C');
  expect([tracker.settled, tracker.unsynced, tracker.awaitingReady]).toEqual([false, true, false]);
  play(tracker, 'S|Z');
  expect(tracker.quiescent).toBe(true);
});

test('after an error the rest of a pipeline is owed nothing until its Sync', () => {
  const tracker = new ResponseTracker();
  play(tracker, 'PB|E|EPBEQ');
  expect([tracker.skipping, tracker.settled, tracker.awaitingReady]).toEqual([true, false, false]);
  play(tracker, 'S|Z');
  expect(tracker.quiescent).toBe(true);
});

test('in a transaction it is settled, not quiescent', () => {
  const tracker = new ResponseTracker();
  play(tracker, 'Q|Cz');
  expect([tracker.settled, tracker.quiescent]).toEqual([true, false]);
});

test('counts on through a deep pipeline', () => {
  const tracker = new ResponseTracker();
  for (let round = 0; round < 3; round++) {
    for (let index = 0; index < 5000; index++) play(tracker, 'PBES');
    for (let index = 0; index < 4999; index++) play(tracker, '|12CZ');
    expect(tracker.quiescent).toBe(false);
    play(tracker, '|12CZ');
    expect(tracker.quiescent).toBe(true);
  }
});
