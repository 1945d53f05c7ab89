/** Writes the same happenings as each format does; written from PostgreSQL's manual, apart from the readers. */
import type { FormatName, LogSeverity } from '../../../src/capture/import/entry.js';

export interface Happening {
  /** UTC, with milliseconds. */
  readonly at: string;
  readonly pid: number;
  readonly session: string;
  readonly user: string;
  readonly database: string;
  readonly severity: LogSeverity;
  readonly sqlState: string;
  readonly message: string;
  readonly detail?: string;
  readonly statement?: string;
}

export interface LogWriter {
  readonly name: string;
  readonly format: FormatName;
  /** Fields that this form does not carry. */
  readonly lost: readonly string[];
  /** One line that this format could not have written. */
  readonly garbage: string;
  write(happenings: readonly Happening[]): string;
}

type Head = (happening: Happening) => string;

/** As the server writes to standard error: every part with a head, line breaks followed by a tab. */
export function stderrText(happenings: readonly Happening[], head: Head): string {
  let text = '';
  for (const happening of happenings) {
    const parts: [string, string | undefined][] = [
      [happening.severity, happening.message],
      ['DETAIL', happening.detail],
      ['STATEMENT', happening.statement],
    ];
    for (const [keyword, content] of parts) {
      if (content !== undefined)
        text += `${head(happening)}${keyword}:  ${content.replaceAll('\n', '\n\t')}\n`;
    }
  }
  return text;
}

const unknown = (name: string): string => (name === '' ? '[unknown]' : name);
const seconds = (at: string): string => at.slice(0, 19);

const STDERR_HEADS: readonly (readonly [name: string, lost: readonly string[], head: Head])[] = [
  ['the default prefix', ['user', 'database', 'sqlState'], ({ at, pid }) => `${at} UTC [${pid}] `],
  [
    'Debian’s prefix',
    ['sqlState'],
    ({ at, pid, user, database }) => `${at} UTC [${pid}] ${user === '' ? '' : `${user}@${database} `}`,
  ],
  [
    'the prefix of Amazon RDS',
    ['sqlState', 'milliseconds'],
    ({ at, pid, user, database }) =>
      `${seconds(at)} UTC:${user === '' ? '' : '10.1.2.3(50906)'}:${user}@${database}:[${pid}]:`,
  ],
  [
    'a prefix with names and values',
    ['sqlState', 'milliseconds'],
    ({ at, pid, user, database }) =>
      `${seconds(at)} UTC [${pid}]: [1-1] user=${unknown(user)},db=${unknown(database)},app=[unknown],client=[local] `,
  ],
  [
    'the prefix of Azure',
    ['user', 'database', 'sqlState', 'milliseconds'],
    ({ at, session }) => `${seconds(at)} UTC-${session}-`,
  ],
  [
    'a prefix of somebody’s own',
    [],
    ({ at, pid, session, user, database, sqlState }) =>
      `|${at} UTC|pid=${pid}|session=${session}|db=${database}|user=${user}|state=${sqlState}| `,
  ],
  [
    'a prefix in epoch seconds',
    ['user', 'database', 'sqlState'],
    ({ at, pid }) => `${(Date.parse(`${at.replace(' ', 'T')}Z`) / 1000).toFixed(3)} [${pid}] `,
  ],
  ['a time alone', ['user', 'database', 'sqlState', 'process'], ({ at }) => `${at} UTC `],
];

const quote = (text: string): string => (text === '' ? '' : `"${text.replaceAll('"', '""')}"`);

function csv(columns: number): (happenings: readonly Happening[]) => string {
  return (happenings) =>
    happenings
      .map((happening, at) => {
        const row = [
          `${happening.at} UTC`,
          quote(happening.user),
          quote(happening.database),
          String(happening.pid),
          quote('10.1.2.3:50906'),
          happening.session,
          String(at + 1),
          quote('SELECT'),
          '2026-03-02 09:00:00 UTC',
          '3/17',
          '0',
          happening.severity,
          happening.sqlState,
          quote(happening.message),
          quote(happening.detail ?? ''),
          '',
          '',
          '',
          '',
          quote(happening.statement ?? ''),
          '',
          '',
          quote('web'),
          quote('client backend'),
          '',
          '0',
        ];
        return `${row.slice(0, columns).join(',')}\n`;
      })
      .join('');
}

function json(happening: Happening): Record<string, unknown> {
  return {
    timestamp: `${happening.at} UTC`,
    ...(happening.user === '' ? {} : { user: happening.user, dbname: happening.database }),
    pid: happening.pid,
    session_id: happening.session,
    line_num: 1,
    error_severity: happening.severity,
    state_code: happening.sqlState,
    message: happening.message,
    detail: happening.detail,
    statement: happening.statement,
    backend_type: 'client backend',
  };
}

/** Cloud SQL wraps each line of the log into an object of its own. */
function cloudSql(happenings: readonly Happening[]): object[] {
  return happenings.flatMap((happening) =>
    stderrText(
      [happening],
      ({ pid, user, database }) => `[${pid}]: [1-1] db=${unknown(database)},user=${unknown(user)} `,
    )
      .trimEnd()
      .split('\n')
      .map((textPayload) => ({
        insertId: 's=1',
        resource: { type: 'cloudsql_database', labels: { region: 'europe' } },
        severity: 'INFO',
        textPayload,
        timestamp: `${happening.at.replace(' ', 'T')}Z`,
      })),
  );
}

function azure(happening: Happening): object {
  return {
    time: `${happening.at.replace(' ', 'T')}Z`,
    category: 'PostgreSQLLogs',
    properties: {
      timestamp: `${seconds(happening.at)} UTC`,
      processId: happening.pid,
      errorLevel: happening.severity,
      sqlerrcode: happening.sqlState,
      message: `${seconds(happening.at)} UTC-${happening.session}-${happening.severity}:  ${happening.message}`,
      detail: happening.detail,
      statement: happening.statement,
    },
  };
}

function cloudNative(happening: Happening): object {
  return {
    level: 'info',
    ts: `${happening.at.replace(' ', 'T')}Z`,
    logger: 'postgres',
    msg: 'record',
    record: {
      log_time: `${happening.at} UTC`,
      user_name: happening.user,
      database_name: happening.database,
      process_id: String(happening.pid),
      session_id: happening.session,
      error_severity: happening.severity,
      sql_state_code: happening.sqlState,
      message: happening.message,
      detail: happening.detail,
      query: happening.statement,
    },
  };
}

/** One event a report, as CloudWatch keeps the lines that begin with a time together. */
function cloudWatch(happening: Happening): object {
  return {
    timestamp: Date.parse(`${happening.at.replace(' ', 'T')}Z`),
    message: stderrText(
      [happening],
      ({ at, pid, user, database }) =>
        `${seconds(at)} UTC:${user === '' ? '' : '10.1.2.3(50906)'}:${user}@${database}:[${pid}]:`,
    ).trimEnd(),
    ingestionTime: 1_772_445_600_000,
  };
}

const lines = (objects: readonly object[]): string =>
  objects.map((object) => `${JSON.stringify(object)}\n`).join('');

export const WRITERS: readonly LogWriter[] = [
  ...STDERR_HEADS.map(([name, lost, head]): LogWriter => ({
    name: `stderr with ${name}`,
    format: 'stderr',
    lost,
    garbage: 'pg_ctl: could not start server',
    write: (happenings) => stderrText(happenings, head),
  })),
  ...[22, 23, 24, 26].map((columns): LogWriter => ({
    name: `csvlog of ${columns} columns`,
    format: 'csvlog',
    lost: [],
    garbage: 'pg_ctl: could not start server',
    write: csv(columns),
  })),
  {
    name: 'jsonlog',
    format: 'jsonlog',
    lost: [],
    garbage: '{"timestamp": "2026-03-02 10:00:00.250 UTC", "error_sev',
    write: (happenings) => lines(happenings.map(json)),
  },
  {
    name: 'Cloud SQL',
    format: 'cloud-json',
    lost: ['sqlState'],
    garbage: 'not json at all',
    write: (happenings) => lines(cloudSql(happenings)),
  },
  {
    name: 'Cloud SQL as one array over many lines',
    format: 'cloud-json',
    lost: ['sqlState'],
    garbage: 'not json at all',
    write: (happenings) => `${JSON.stringify(cloudSql(happenings), null, 2)}\n`,
  },
  {
    name: 'Azure diagnostics',
    format: 'cloud-json',
    lost: ['user', 'database'],
    garbage: 'not json at all',
    write: (happenings) => lines(happenings.map(azure)),
  },
  {
    name: 'CloudNativePG',
    format: 'cloud-json',
    lost: [],
    garbage: 'not json at all',
    write: (happenings) => lines(happenings.map(cloudNative)),
  },
  {
    name: 'CloudWatch events',
    format: 'cloud-json',
    lost: ['sqlState', 'milliseconds'],
    garbage: 'not json at all',
    write: (happenings) => lines([{ events: happenings.map(cloudWatch) }]),
  },
];
