/** COPY in and out, in simple, extended and prepared form, ended well, badly and too early. */
import {
  bind,
  closeStatement,
  copyData,
  copyDone,
  copyFail,
  describePortal,
  describeStatement,
  execute,
  flush,
  parse,
  query,
  run,
  sync,
} from './frames.js';
import { readies, ready, waitFor, type Conversation } from './conversation.js';

const IN = 'COPY item FROM STDIN';
const OUT = 'COPY (SELECT * FROM item WHERE id < 20 ORDER BY id) TO STDOUT';
const ROWS = copyData('901\ta\n902\tb\n');
const UNDO = query('DELETE FROM item WHERE id > 900');

export const COPY: readonly Conversation[] = [
  { name: 'copy out', steps: [query(OUT), ready] },
  { name: 'copy out of nothing', steps: [query('COPY (SELECT 1 WHERE false) TO STDOUT'), ready] },
  { name: 'copy out as binary', steps: [query('COPY item TO STDOUT (FORMAT binary)'), ready] },
  {
    name: 'copy out as CSV with a header',
    steps: [query('COPY item TO STDOUT (FORMAT csv, HEADER)'), ready],
  },
  {
    name: 'copy out by extended messages',
    steps: [parse(OUT), bind(), describePortal(), execute(), sync, ready],
  },
  {
    name: 'copy out by a prepared statement, twice',
    steps: [
      parse(OUT, 'out'), describeStatement('out'), bind({ statement: 'out' }), execute(), bind({ statement: 'out' }),
      execute(), sync, ready,
    ], // prettier-ignore
  },
  { name: 'copy out between other statements', steps: [query(`SELECT 1; ${OUT}; SELECT 2; ${OUT}`), ready] },
  {
    name: 'copy out that fails in its middle',
    steps: [query('COPY (SELECT 10 / (3 - i) FROM generate_series(1, 5) i) TO STDOUT'), ready],
  },
  {
    name: 'copy out that fails in its middle, in a pipeline',
    steps: [
      run('COPY (SELECT 10 / (3 - i) FROM generate_series(1, 5) i) TO STDOUT'), run('SELECT 2'), sync, run('SELECT 3'),
      sync, readies(2),
    ], // prettier-ignore
  },
  {
    name: 'copy out of 3 MB',
    steps: [query("COPY (SELECT i, repeat('c', 1000) FROM generate_series(1, 3000) i) TO STDOUT"), ready],
    whole: true,
  },
  {
    name: 'copy in',
    steps: [query(IN), waitFor('G'), ROWS, copyData('903\tc\n'), copyDone, ready, UNDO, ready],
  },
  { name: 'copy in of nothing', steps: [query(IN), waitFor('G'), copyDone, ready] },
  {
    name: 'copy in of empty pieces',
    steps: [query(IN), waitFor('G'), copyData(''), ROWS, copyData(''), copyDone, ready, UNDO, ready],
  },
  {
    name: 'copy in, rows cut anywhere',
    steps: [
      query(IN), waitFor('G'), copyData('90'), copyData('1\t'), copyData('abc'), copyData('\n902'), copyData('\tx\n'),
      copyDone, ready, UNDO, ready,
    ], // prettier-ignore
  },
  {
    name: 'copy in up to its end mark',
    steps: [query(IN), waitFor('G'), copyData('901\ta\n\\.\n'), copyDone, ready, UNDO, ready],
  },
  {
    name: 'copy in as CSV',
    steps: [
      query(`${IN} (FORMAT csv)`),
      waitFor('G'),
      copyData('901,"a ""b"""\n902,\n'),
      copyDone,
      ready,
      UNDO,
      ready,
    ],
  },
  {
    name: 'copy in of 2 MB',
    steps: [
      query(IN), waitFor('G'),
      ...Array.from({ length: 200 }, (_, index) => copyData(`${1000 + index}\t${'d'.repeat(10_000)}\n`)),
      copyDone, ready, UNDO, ready,
    ], // prettier-ignore
    whole: true,
  },
  { name: 'copy in, everything sent ahead', steps: [query(IN), ROWS, copyDone, UNDO, readies(2)] },
  {
    name: 'copy in, twice, everything sent ahead',
    steps: [query(IN), ROWS, copyDone, UNDO, query(IN), ROWS, copyDone, UNDO, readies(4)],
  },
  {
    name: 'copy in that the client gives up',
    steps: [query(IN), waitFor('G'), ROWS, copyFail('no more'), ready, query('SELECT 1'), ready],
  },
  {
    name: 'copy in that the client gives up, sent ahead',
    steps: [query(IN), ROWS, copyFail('no'), query('SELECT 1'), readies(2)],
  },
  {
    name: 'copy in that the server refuses, before CopyDone',
    steps: [
      query(IN),
      waitFor('G'),
      copyData('x\ty\n'),
      waitFor('E'),
      ROWS,
      copyDone,
      ready,
      query('SELECT 1'),
      ready,
    ],
  },
  {
    name: 'copy in that the server refuses, all of it on its way',
    steps: [query(IN), copyData('x\ty\n'), ROWS, ROWS, copyDone, query('SELECT 1'), readies(2)],
  },
  {
    name: 'copy in that fails at CopyDone',
    steps: [query(IN), waitFor('G'), copyData('901'), copyDone, ready, query('SELECT 1'), ready],
  },
  {
    name: 'copy in that breaks a constraint',
    steps: [query(IN), waitFor('G'), copyData('1\ta\n'), copyDone, ready],
  },
  {
    name: 'copy in that fails before it begins',
    steps: [query('COPY nonsense FROM STDIN'), ROWS, copyDone, query('SELECT 1'), readies(2)],
  },
  {
    name: 'copy in between other statements',
    steps: [
      query(`SELECT 1; ${IN}; SELECT count(*) FROM item; ${IN}; SELECT 2`), waitFor('G'), ROWS, copyDone, waitFor('G'),
      copyData('903\tc\n'), copyDone, ready, UNDO, ready,
    ], // prettier-ignore
  },
  {
    name: 'two copies in of one query, the data sent ahead',
    steps: [query(`${IN}; ${IN}`), ROWS, copyDone, copyData('903\tc\n'), copyDone, UNDO, readies(2)],
  },
  {
    name: 'a copy in and a copy out in one query',
    steps: [
      query(`${IN}; COPY (SELECT * FROM item WHERE id > 900) TO STDOUT`),
      waitFor('G'),
      ROWS,
      copyDone,
      ready,
      UNDO,
      ready,
    ],
  },
  {
    name: 'copy in within a transaction',
    steps: [
      query('BEGIN'),
      query(IN),
      ROWS,
      copyDone,
      query('SELECT count(*) FROM item'),
      query('ROLLBACK'),
      readies(4),
    ],
  },
  {
    name: 'copy in that fails within a transaction',
    steps: [query('BEGIN'), query(IN), copyFail('no'), query('SELECT 1'), query('ROLLBACK'), readies(4)],
  },
  {
    name: 'copy in by extended messages, waiting for the server',
    steps: [parse(IN), bind(), execute(), flush, waitFor('G'), ROWS, copyDone, sync, ready, UNDO, ready],
  },
  {
    name: 'copy in as libpq sends it, Sync in front of the data',
    steps: [
      parse(IN),
      bind(),
      describePortal(),
      execute(),
      sync,
      waitFor('G'),
      ROWS,
      copyDone,
      sync,
      ready,
      UNDO,
      ready,
    ],
  },
  {
    name: 'copy in by extended messages, everything sent ahead',
    steps: [run(IN), ROWS, copyDone, sync, run(IN), copyData('903\tc\n'), copyDone, sync, UNDO, readies(3)],
  },
  {
    name: 'copy in by extended messages with Syncs and Flushes among the data',
    steps: [run(IN), sync, ROWS, sync, flush, copyData('903\tc\n'), sync, copyDone, sync, UNDO, readies(2)],
  },
  {
    name: 'copy in by a prepared statement, twice',
    steps: [
      parse(IN, 'in'), sync, ready, bind({ statement: 'in' }), execute(), flush, waitFor('G'), ROWS, copyDone, sync,
      ready, bind({ statement: 'in' }), execute(), sync, waitFor('G'), copyData('903\tc\n'), copyDone, sync, ready,
      closeStatement('in'), sync, ready, UNDO, ready,
    ], // prettier-ignore
  },
  {
    name: 'copy in by extended messages, given up',
    steps: [run(IN), flush, waitFor('G'), ROWS, copyFail('no'), sync, ready, run('SELECT 1'), sync, ready],
  },
  {
    name: 'copy in by extended messages, given up with Sync in front',
    steps: [run(IN), sync, waitFor('G'), ROWS, copyFail('no'), sync, ready, run('SELECT 1'), sync, ready],
  },
  {
    name: 'copy in by extended messages, refused by the server before CopyDone',
    steps: [
      run(IN), flush, waitFor('G'), copyData('x\ty\n'), flush, waitFor('E'), ROWS, copyDone, sync, ready,
      run('SELECT 1'), sync, ready,
    ], // prettier-ignore
  },
  {
    name: 'copy in by extended messages, refused at CopyDone',
    steps: [
      run(IN),
      flush,
      waitFor('G'),
      copyData('x\ty\n'),
      copyDone,
      sync,
      ready,
      run('SELECT 1'),
      sync,
      ready,
    ],
  },
  {
    name: 'copy in by extended messages, refused, all of it on its way',
    steps: [
      run(IN),
      copyData('x\ty\n'),
      ROWS,
      copyDone,
      run('SELECT 0'),
      sync,
      run('SELECT 1'),
      sync,
      readies(2),
    ],
  },
  {
    name: 'copy in by extended messages that fails before it begins',
    steps: [run('COPY nonsense FROM STDIN'), ROWS, copyDone, sync, run('SELECT 1'), sync, readies(2)],
  },
  {
    name: 'copy in in the middle of a pipeline',
    steps: [
      run('SELECT 1'),
      run(IN),
      flush,
      waitFor('G'),
      ROWS,
      copyDone,
      run('SELECT count(*) FROM item'),
      sync,
      ready,
      UNDO,
      ready,
    ],
  },
  {
    name: 'data, its end and its failure without a COPY',
    steps: [ROWS, copyDone, copyFail('what'), query('SELECT 1'), ready],
  },
  {
    name: 'data without a COPY in a pipeline',
    steps: [parse('SELECT 1'), ROWS, copyDone, bind(), copyFail('what'), execute(), sync, ready],
  },
  {
    name: 'a COPY to and from files and programs',
    steps: [query("COPY item TO '/nonexistent/x'"), ready, query("COPY item FROM '/nonexistent/x'"), ready],
  },
];

/** What breaks a COPY off: the server ends the mode with an error, from 14 on with the connection. */
export const COPY_BROKEN: readonly Conversation[] = [
  {
    name: 'a query in the middle of a copy in',
    steps: [query(IN), waitFor('G'), ROWS, query('SELECT 1'), waitFor('E')],
    ends: 'closed',
    // The server closes at the type byte; what is still being written to it then resets the connection.
    whole: true,
  },
  {
    name: 'a Parse in the middle of a copy in',
    steps: [query(IN), waitFor('G'), ROWS, parse('SELECT 1'), waitFor('E')],
    ends: 'closed',
    // The server closes at the type byte; what is still being written to it then resets the connection.
    whole: true,
  },
  {
    name: 'a Bind in the middle of an extended copy in',
    steps: [run(IN), flush, waitFor('G'), ROWS, bind(), waitFor('E')],
    ends: 'closed',
    // The server closes at the type byte; what is still being written to it then resets the connection.
    whole: true,
  },
];
