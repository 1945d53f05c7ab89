/** Parse, Bind, Describe, Execute, Close, Flush and Sync, in every order. */
import {
  ask,
  bind,
  closePortal,
  closeStatement,
  describePortal,
  describeStatement,
  execute,
  flush,
  parse,
  query,
  run,
  sync,
} from './frames.js';
import { readies, ready, waitFor, type Conversation, type Step } from './conversation.js';

const IDS = 'SELECT id FROM item ORDER BY id';

/** Everything at once, with as many Syncs as are owed an answer. */
const batch = (name: string, syncs: number, steps: readonly Step[]): Conversation => ({
  name,
  steps: [...steps, readies(syncs)],
});

export const EXTENDED: readonly Conversation[] = [
  batch('Sync alone', 1, [sync]),
  batch('many Syncs', 5, [sync, sync, sync, sync, sync]),
  batch('the usual five messages', 1, [ask('SELECT $1::int + 1', { values: ['41'] })]),
  batch('Parse alone', 1, [parse('SELECT 1'), sync]),
  batch('Parse of nothing', 1, [parse(''), bind(), describePortal(), execute(), sync]),
  batch('Parse of several statements', 1, [parse('SELECT 1; SELECT 2'), sync]),
  batch('Parse that fails, and what is discarded behind it', 1, [
    parse('SELECT nonsense'), describeStatement(), bind(), execute(), closeStatement('x'), flush, sync,
  ]), // prettier-ignore
  batch('a name that is taken', 2, [parse('SELECT 1', 's'), sync, parse('SELECT 2', 's'), sync]),
  batch('too few values', 3, [
    parse('SELECT $1::int', 's'), sync, bind({ statement: 's' }), execute(), sync,
    parse('SELECT $1::int'), bind(), execute(), sync,
  ]), // prettier-ignore
  batch('Describe of a statement alone', 2, [
    parse('SELECT $1::text, $2::int[] WHERE $3', 's'), sync, describeStatement('s'), sync,
  ]), // prettier-ignore
  batch('Describe of a statement that returns nothing', 1, [
    parse('DELETE FROM item WHERE id = $1'), describeStatement(), sync,
  ]), // prettier-ignore
  batch('Describe of a portal', 1, [parse(IDS), bind({ results: [1] }), describePortal(), sync]),
  batch('Describe of what is not there', 2, [describeStatement('no'), sync, describePortal('no'), sync]),
  batch('a named statement, used again and again', 4, [
    parse('SELECT name FROM item WHERE id = $1', 'byId'), sync,
    bind({ statement: 'byId', values: ['1'] }), execute(), sync,
    bind({ statement: 'byId', values: ['2'] }), execute(), bind({ statement: 'byId', values: ['3'] }), execute(), sync,
    closeStatement('byId'), sync,
  ]), // prettier-ignore
  batch('the unnamed statement, bound twice', 2, [
    parse('SELECT $1::int'), bind({ values: ['1'] }), execute(), sync, bind({ values: ['2'] }), execute(), sync,
  ]), // prettier-ignore
  batch('the unnamed statement after a simple query is gone', 3, [
    parse('SELECT 1'), sync, query('SELECT 2'), bind(), execute(), sync,
  ]), // prettier-ignore
  batch('the unnamed statement after a failed Parse', 3, [
    parse('SELECT 1'), sync, parse('SELECT nonsense'), sync, bind(), execute(), sync,
  ]), // prettier-ignore
  batch('Bind to an unknown statement', 1, [bind({ statement: 'no' }), execute(), sync]),
  batch('Bind with too few values', 1, [
    parse('SELECT $1::int, $2::int'),
    bind({ values: ['1'] }),
    execute(),
    sync,
  ]),
  batch('Bind with too many formats', 1, [
    parse('SELECT $1::int'), bind({ values: ['1'], formats: [0, 0, 0] }), execute(), sync,
  ]), // prettier-ignore
  batch('Bind of a value that is not one', 2, [
    parse('SELECT $1::int'), bind({ values: ['one'] }), execute(), sync, bind({ values: ['1'] }), execute(), sync,
  ]), // prettier-ignore
  batch('Bind of an unknown format', 1, [
    parse('SELECT $1::int'),
    bind({ values: ['1'], formats: [7] }),
    sync,
  ]),
  batch('a portal whose name is taken', 1, [
    query('BEGIN'), parse(IDS, 's'), bind({ statement: 's', portal: 'p' }), bind({ statement: 's', portal: 'p' }),
    sync, query('ROLLBACK'), readies(2),
  ]), // prettier-ignore
  batch('several portals at once, fetched in turns', 1, [
    parse(IDS, 's'), bind({ statement: 's', portal: 'a' }), bind({ statement: 's', portal: 'b' }),
    execute('a', 2), execute('b', 3), execute('a', 2), execute('b', 1), closePortal('a'), execute('a', 1), sync,
  ]), // prettier-ignore
  batch('a portal fetched in parts to its end', 1, [
    parse('SELECT id FROM item WHERE id <= 5 ORDER BY id'), bind(), execute('', 2), execute('', 2), execute('', 2),
    execute('', 2), sync,
  ]), // prettier-ignore
  {
    name: 'a portal fetched in parts over several Syncs of a transaction',
    steps: [
      ask('BEGIN'), ready, parse(IDS), bind({ portal: 'p' }), describePortal('p'), execute('p', 10), sync, ready,
      execute('p', 20), sync, ready, execute('p'), sync, ready, closePortal('p'), sync, ready, ask('COMMIT'), ready,
    ], // prettier-ignore
  },
  batch('a portal that ends with its Sync', 2, [
    parse(IDS),
    bind({ portal: 'p' }),
    execute('p', 1),
    sync,
    execute('p', 1),
    sync,
  ]),
  batch('a row limit on what returns no rows', 1, [
    parse('UPDATE item SET name = name'),
    bind(),
    execute('', 1),
    sync,
  ]),
  batch('a row limit on RETURNING', 1, [
    parse('UPDATE item SET name = name WHERE id < 4 RETURNING id'), bind(), execute('', 1), execute('', 1), sync,
  ]), // prettier-ignore
  batch('Execute of an unknown portal', 1, [execute('no'), sync]),
  batch('Execute twice', 1, [parse('SELECT 1'), bind(), execute(), execute(), sync]),
  batch('Close of what is not there', 1, [
    closeStatement('no'),
    closePortal('no'),
    closeStatement(),
    closePortal(),
    sync,
  ]),
  batch('Close of a statement with an open portal', 1, [
    parse(IDS, 's'), bind({ statement: 's', portal: 'p' }), closeStatement('s'), execute('p', 1), sync,
  ]), // prettier-ignore
  batch('Close of what is neither', 1, [Buffer.from([0x43, 0, 0, 0, 6, 0x58, 0]), sync]),
  batch('Describe of what is neither', 1, [Buffer.from([0x44, 0, 0, 0, 6, 0x58, 0]), sync]),
  {
    name: 'Flush after each message',
    steps: [
      parse('SELECT $1::int', 's'), flush, waitFor('1'), describeStatement('s'), flush, waitFor('T'),
      bind({ statement: 's', values: ['5'] }), flush, waitFor('2'), execute(), flush, waitFor('C'),
      closeStatement('s'), flush, waitFor('3'), sync, ready,
    ], // prettier-ignore
  },
  {
    name: 'Flush without Sync, then an error, then discarded messages until the Sync',
    steps: [
      run('SELECT 1'), flush, waitFor('C'), parse('SELECT nonsense'), flush, waitFor('E'), run('SELECT 2'), flush,
      run('SELECT 3'), sync, ready, run('SELECT 4'), sync, ready,
    ], // prettier-ignore
  },
  {
    name: 'a simple query in a pipeline that was flushed and not synced',
    steps: [run('SELECT 1'), flush, waitFor('C'), query('SELECT 2'), ready, sync, ready],
  },
  batch('Flush of nothing', 1, [flush, flush, sync]),
  batch('a pipeline of successes and errors', 6, [
    run('SELECT 1'), sync, run('SELECT 1/0'), run('SELECT 2'), sync, run('SELECT 3'), run('SELECT nonsense'),
    run('SELECT 4'), sync, query('SELECT 5'), run('SELECT'), sync, query('SELECT 1/0'),
  ]), // prettier-ignore
  batch('an implicit transaction that an error undoes', 2, [
    run("INSERT INTO item VALUES (900, 'x')"), run('SELECT 1/0'), sync, run('SELECT count(*) FROM item'), sync,
  ]), // prettier-ignore
  batch('an implicit transaction that commits at its Sync', 3, [
    run("INSERT INTO item VALUES (900, 'x')"), run("INSERT INTO item VALUES (901, 'x')"), sync,
    query('SELECT 1/0'), run('DELETE FROM item WHERE id >= 900'), sync,
  ]), // prettier-ignore
  batch('an error in the middle of rows', 1, [
    parse('SELECT 10 / (3 - i) FROM generate_series(1, 5) i'), bind(), describePortal(), execute(), sync,
  ]), // prettier-ignore
  batch('queries skipped behind an error', 2, [
    parse('SELECT nonsense'),
    query('SELECT 1'),
    query('SELECT 2'),
    sync,
    query('SELECT 3'),
  ]),
  batch('a query in front of a Sync', 2, [run('SELECT 1'), query('SELECT 2'), sync]),
  batch('five hundred statements in one pipeline', 1, [
    ...Array.from({ length: 500 }, (_, index) => run('SELECT $1::int', { values: [String(index)] })), sync,
  ]), // prettier-ignore
  batch(
    'a hundred Syncs in flight, each third batch failing',
    100,
    Array.from({ length: 100 }, (_, index) =>
      Buffer.concat([run(index % 3 === 0 ? 'SELECT 1/0' : `SELECT ${index}`), sync]),
    ),
  ),
  batch('parameter types given', 1, [
    parse('SELECT $1, $2, $3', '', [23, 0, 16]), describeStatement(), bind({ values: ['1', 'x', 't'] }), execute(), sync,
  ]), // prettier-ignore
  batch('a parameter type that does not exist', 1, [parse('SELECT $1', '', [999_999]), sync]),
  batch('a parameter type that cannot be told', 1, [parse('SELECT $1 IS NULL'), describeStatement(), sync]),
  batch('values that are null, empty and long', 1, [
    ask('SELECT $1::text, $2::text, length($3::text)', { values: [null, '', 'v'.repeat(100_000)] }),
  ]),
  batch('300 parameters', 1, [
    ask(`SELECT ${Array.from({ length: 300 }, (_, index) => `$${index + 1}::int`).join(' + ')}`, {
      values: Array.from({ length: 300 }, (_, index) => String(index)),
    }),
  ]),
  batch('names that are long, odd or not ASCII', 1, [
    parse('SELECT 1', 'n'.repeat(600)), bind({ statement: 'n'.repeat(600), portal: 'ąę "\'; --' }),
    execute('ąę "\'; --'), closeStatement('n'.repeat(600)), sync,
  ]), // prettier-ignore
  batch('names longer than what is looked at of a Bind that comes in pieces', 1, [
    parse('SELECT $1::int', 'm'.repeat(3000)),
    bind({ statement: 'm'.repeat(3000), portal: 'q'.repeat(3000), values: ['1'] }),
    execute('q'.repeat(3000)), closePortal('q'.repeat(3000)), sync,
  ]), // prettier-ignore
  batch('a statement that no longer fits its table', 5, [
    query('CREATE TABLE scratch.shape (a int)'), parse('SELECT * FROM scratch.shape', 's'), sync,
    query('ALTER TABLE scratch.shape ADD b int'), bind({ statement: 's' }), execute(), sync,
    query('DROP TABLE scratch.shape'),
  ]), // prettier-ignore
  batch('notices within a pipeline', 1, [
    run("DO $$ BEGIN RAISE NOTICE 'one'; END $$"), run('SELECT 1'), run("DO $$ BEGIN RAISE WARNING 'two'; END $$"), sync,
  ]), // prettier-ignore
];
