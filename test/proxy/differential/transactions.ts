/** Transactions, savepoints, cursors, timeouts. */
import { ask, bind, execute, query, run, sync, terminate } from './frames.js';
import { readies, ready, untilActive, waitFor, type Conversation } from './conversation.js';

const one = (
  name: string,
  statements: readonly string[],
  more: Partial<Conversation> = {},
): Conversation => ({
  name,
  steps: statements.flatMap((sql) => [query(sql), ready]),
  ...more,
});

/** All of them sent at once. */
const piped = (name: string, statements: readonly string[]): Conversation => ({
  name,
  steps: [...statements.map(query), readies(statements.length)],
});

export const TRANSACTIONS: readonly Conversation[] = [
  one('commit', ['BEGIN', "INSERT INTO item VALUES (901, 'a')", 'COMMIT', 'DELETE FROM item WHERE id = 901']),
  one('roll back', ['BEGIN', "UPDATE item SET name = 'x'", 'ROLLBACK', 'SELECT name FROM item WHERE id = 3']),
  one('a failed transaction refuses until it ends', [
    'BEGIN', 'SELECT 1/0', 'SELECT 1', 'SAVEPOINT s', 'COMMIT', 'SELECT 2',
  ]), // prettier-ignore
  piped('a failed transaction in one go', ['BEGIN', 'SELECT 1/0', 'SELECT 1', 'ROLLBACK', 'SELECT 2']),
  one('savepoints', [
    'BEGIN', 'SAVEPOINT a', 'SELECT 1/0', 'ROLLBACK TO a', 'SELECT 1', 'SAVEPOINT b', 'RELEASE a', 'ROLLBACK TO b',
    'ROLLBACK',
  ]), // prettier-ignore
  one('warnings about transactions that are or are not', [
    'COMMIT',
    'ROLLBACK',
    'BEGIN',
    'BEGIN',
    'ABORT',
    'END',
  ]),
  one('AND CHAIN', [
    'BEGIN ISOLATION LEVEL SERIALIZABLE',
    'COMMIT AND CHAIN',
    'SHOW transaction_isolation',
    'ROLLBACK',
  ]),
  one('a read-only transaction', ['BEGIN READ ONLY', 'DELETE FROM item', 'ROLLBACK']),
  one('a constraint deferred to the commit', [
    'BEGIN', 'INSERT INTO child VALUES (1, 99999)', 'SELECT count(*) FROM child', 'COMMIT', 'SELECT 1',
  ]), // prettier-ignore
  one('two-phase commit, which is not configured or is', [
    'BEGIN',
    "PREPARE TRANSACTION 'x'",
    "ROLLBACK PREPARED 'x'",
  ]),
  one('settings of one transaction', [
    'BEGIN', 'SET LOCAL work_mem = 1024', 'SHOW work_mem', 'SAVEPOINT a', 'SET LOCAL work_mem = 2048',
    'ROLLBACK TO a', 'SHOW work_mem', 'COMMIT', 'SHOW work_mem',
  ]), // prettier-ignore
  one('a cursor', [
    'BEGIN', 'DECLARE c SCROLL CURSOR FOR SELECT id FROM item ORDER BY id', 'FETCH 3 FROM c', 'MOVE 100 IN c',
    'FETCH BACKWARD 2 FROM c', 'FETCH ALL FROM c', 'CLOSE c', 'FETCH c', 'ROLLBACK',
  ]), // prettier-ignore
  one('a binary cursor', [
    'BEGIN',
    'DECLARE c BINARY CURSOR FOR SELECT 7, now() > now(), 1.5',
    'FETCH c',
    'COMMIT',
  ]),
  one('a cursor WITH HOLD', [
    'DECLARE kept CURSOR WITH HOLD FOR SELECT id FROM item WHERE id < 6 ORDER BY id', 'FETCH 2 FROM kept',
    'BEGIN', 'FETCH 1 FROM kept', 'ROLLBACK', 'FETCH 9 FROM kept', 'CLOSE kept',
  ]), // prettier-ignore
  {
    name: 'an extended transaction that fails and is rolled back',
    steps: [
      ask('BEGIN'), ready, ask('SELECT 1/0'), ready, ask('SELECT 1'), ready, ask('ROLLBACK'), ready, ask('SELECT 2'),
      ready,
    ], // prettier-ignore
  },
  {
    name: 'a transaction in one pipeline, one Sync',
    steps: [
      run('BEGIN'),
      run('SELECT 1'),
      run("SET LOCAL work_mem = '2MB'"),
      run('COMMIT'),
      run('SELECT 2'),
      sync,
      ready,
    ],
  },
  {
    name: 'a transaction opened and not ended in one pipeline',
    steps: [run('BEGIN'), run('SELECT 1'), sync, run('SELECT nonsense'), sync, query('COMMIT'), readies(3)],
  },
  {
    name: 'a simple and an extended transaction mixed',
    steps: [
      query('BEGIN'),
      run('SELECT 1'),
      sync,
      query('SELECT 1/0'),
      run('SELECT 2'),
      sync,
      query('END'),
      readies(5),
    ],
  },
  one(
    'a statement that takes too long',
    ["SET statement_timeout = '20ms'", 'SELECT pg_sleep(20)', 'SELECT 1'],
    {
      whole: true,
    },
  ),
  {
    name: 'a statement of a pipeline that takes too long',
    steps: [
      query("SET statement_timeout = '20ms'"), ready, run('SELECT 1'), run('SELECT pg_sleep(20)'), run('SELECT 3'), sync,
      query('SELECT 4'), readies(2),
    ], // prettier-ignore
    whole: true,
  },
  {
    name: 'a lock that is not had in time',
    steps: [
      {
        act: async ({ control }) => {
          await control.query('BEGIN');
          await control.query('LOCK TABLE child');
        },
      },
      query("SET lock_timeout = '20ms'"), ready, query('SELECT count(*) FROM child'), ready,
      { act: ({ control }) => control.query('ROLLBACK') },
      query('SELECT count(*) FROM child'), ready,
    ], // prettier-ignore
    whole: true,
  },
  {
    name: 'a transaction that idles too long is ended by the server',
    steps: [
      query("SET idle_in_transaction_session_timeout = '20ms'"),
      ready,
      query('BEGIN'),
      ready,
      waitFor('E'),
    ],
    ends: 'closed',
    whole: true,
    expect: '25P03',
  },
  {
    name: 'a session that idles too long is ended by the server',
    steps: [query("SET idle_session_timeout = '20ms'"), ready, waitFor('E')],
    ends: 'closed',
    whole: true,
    expect: '57P05',
  },
  {
    name: 'a backend that ends itself',
    steps: [query('SELECT pg_terminate_backend(pg_backend_pid())'), waitFor('E')],
    ends: 'closed',
    expect: '57P01',
  },
  {
    name: 'a backend that is ended while idle',
    steps: [
      {
        act: ({ control, pid }) => control.query('SELECT pg_terminate_backend($1)', [pid]),
      },
      waitFor('E'),
    ],
    ends: 'closed',
    expect: '57P01',
  },
  {
    name: 'a backend that is ended while it works',
    steps: [
      run('SELECT 1'), run('SELECT pg_sleep(20)'), sync,
      {
        act: async (stage) => {
          await untilActive(stage, 'PgSleep');
          await stage.control.query('SELECT pg_terminate_backend($1)', [stage.pid]);
        },
      },
      waitFor('E'),
    ], // prettier-ignore
    ends: 'closed',
    whole: true,
    expect: '57P01',
  },
  {
    name: 'a cancel during a query',
    steps: [
      query('SELECT 1; SELECT pg_sleep(20)'),
      {
        act: async (stage) => {
          await untilActive(stage, 'PgSleep');
          await stage.client.cancel();
        },
      },
      ready,
    ],
    whole: true,
    expect: '57014',
  },
  {
    name: 'a cancel in the middle of a pipeline',
    steps: [
      run('SELECT 1'), run('SELECT pg_sleep(20)'), run('SELECT 3'), sync, run('SELECT 4'), sync,
      {
        act: async (stage) => {
          await untilActive(stage, 'PgSleep');
          await stage.client.cancel();
        },
      },
      readies(2),
    ], // prettier-ignore
    whole: true,
    expect: '57014',
  },
  {
    name: 'a cancel by another session of the server',
    steps: [
      query('BEGIN'), ready, query('SELECT pg_sleep(20)'),
      {
        act: async (stage) => {
          await untilActive(stage, 'PgSleep');
          await stage.control.query('SELECT pg_cancel_backend($1)', [stage.pid]);
        },
      },
      ready, query('ROLLBACK'), ready,
    ], // prettier-ignore
    whole: true,
    expect: '57014',
  },
  {
    name: 'a cancel of nothing',
    steps: [query('SELECT 1'), ready, { act: ({ client }) => client.cancel() }, query('SELECT 2'), ready],
    whole: true,
  },
  {
    name: 'Terminate in the middle of a transaction',
    steps: [query('BEGIN'), ready, terminate],
    ends: 'closed',
  },
  {
    name: 'Terminate in the middle of a pipeline',
    steps: [run('SELECT 1'), terminate],
    ends: 'closed',
  },
  {
    name: 'a portal survives no commit',
    steps: [
      query('BEGIN'), ready, run('SELECT 1'), bind({ portal: 'p' }), execute('p'), sync, ready, query('COMMIT'), ready,
      execute('p'), sync, ready,
    ], // prettier-ignore
  },
];
