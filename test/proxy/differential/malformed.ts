/** What no proper client says. */
import { bind, execute, functionCall, int32, parse, query, run, sync } from './frames.js';
import { frame } from '../proxy-support.js';
import { readies, ready, waitFor, type Conversation } from './conversation.js';

const one = (name: string, bad: Buffer, syncs = 1): Conversation => ({
  name,
  steps: [bad, ...(syncs === 0 ? [] : [sync]), ready],
});

export const MALFORMED: readonly Conversation[] = [
  ...['!', 'a', '~', '\x01', '\x7f', 'A', 'Z'].map((type): Conversation => ({
    name: `an unknown message type ${JSON.stringify(type)}`,
    steps: [frame(type), waitFor('E')],
    ends: 'closed',
    expect: '08P01',
  })),
  {
    name: 'an unknown message type behind others',
    steps: [query('SELECT 1'), run('SELECT 2'), sync, frame('?', ''), waitFor('E')],
    ends: 'closed',
    expect: '08P01',
  },
  {
    name: 'an unknown message type within what is skipped after an error',
    steps: [parse('SELECT nonsense'), frame('?', ''), waitFor('E', 2)],
    ends: 'closed',
    expect: '08P01',
  },
  {
    name: 'a password when nobody asked',
    steps: [frame('p', 'secret\0'), waitFor('E')],
    // The server closes at the type byte; what is still being written to it then resets the connection.
    whole: true,
    ends: 'closed',
    expect: '08P01',
  },
  one('a query without its final zero', frame('Q', 'SELECT 1'), 0),
  one('a query with something behind its zero', frame('Q', 'SELECT 1\0SELECT 2\0'), 0),
  one('a query of no bytes', frame('Q'), 0),
  one('a Parse without zeros', frame('P', 'abc')),
  one('a Parse of no bytes', frame('P')),
  one('a Parse that announces more types than it has', frame('P', '\0SELECT 1\0', [0, 5], int32(23))),
  one('a Parse with something behind its end', frame('P', '\0SELECT 1\0', [0, 0], 'more')),
  one('a Bind of no bytes', Buffer.concat([parse('SELECT 1'), frame('B')])),
  one(
    'a Bind whose value is longer than the message',
    Buffer.concat([parse('SELECT $1::int'), frame('B', '\0\0', [0, 0, 0, 1], int32(1000), 'x', [0, 0])]),
  ),
  one(
    'a Bind whose value has a negative length',
    Buffer.concat([parse('SELECT $1::int'), frame('B', '\0\0', [0, 0, 0, 1], int32(-7), 'x', [0, 0])]),
  ),
  one(
    'a Bind with something behind its end',
    Buffer.concat([parse('SELECT 1'), frame('B', '\0\0', [0, 0, 0, 0, 0, 0], 'more')]),
  ),
  one('an Execute of no bytes', frame('E')),
  one('an Execute with half a limit', Buffer.concat([parse('SELECT 1'), bind(), frame('E', '\0', [0, 0])])),
  one('an Execute with a negative limit', Buffer.concat([parse('SELECT 1'), bind(), execute('', -5)])),
  one('a Describe of no bytes', frame('D')),
  one('a Describe without its zero', frame('D', 'Sabc')),
  one('a Close of no bytes', frame('C')),
  one('a Sync with something in it', frame('S', 'x'), 0),
  one('a Flush with something in it', frame('H', 'x')),
  one('a function call of no bytes', frame('F'), 0),
  one(
    'a function call that is cut',
    functionCall(1397, ['1']).subarray(0, 5).length === 5 ? frame('F', int32(1397), [0, 0, 0, 1]) : sync,
    0,
  ),
  {
    name: 'malformed messages in a pipeline, and what follows',
    steps: [
      run('SELECT 1'),
      frame('B', 'x'),
      run('SELECT 2'),
      sync,
      frame('Q', ''),
      run('SELECT 3'),
      sync,
      readies(3),
    ],
  },
];

/** The server closes without a word, having written to its log alone; the proxy says why, or that it closed. */
export const CLOSED_SILENTLY: readonly Conversation[] = [
  ...[3, 0, -1, 0x7fff_ffff].map((length): Conversation => ({
    name: `a message that declares a length of ${length}`,
    steps: [query('SELECT 1'), ready, Buffer.concat([Buffer.from('Q'), int32(length)])],
    ends: 'closed',
  })),
  {
    name: 'a Sync of more than 10,000 bytes',
    steps: [query('SELECT 1'), ready, frame('S', Buffer.alloc(20_000))],
    ends: 'closed',
  },
];
