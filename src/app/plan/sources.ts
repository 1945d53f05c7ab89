/** Where a plan's data come from when there is a configuration: the kept series, and the catalogs of the side that leads. */
import { readClosure, type Closure } from '../../capture/closure.js';
import { PostgresSeriesStore, SERIES_CONNECTION } from '../../capture/series-store.js';
import { asUnderstudyError } from '../../core/errors.js';
import type { Side } from '../../core/ports.js';
import { connectControl } from '../../core/postgres.js';
import type { ResolvedConfig } from '../config.js';
import { endpointText } from '../config/endpoint.js';
import { dataFromStore, type PlanData } from './series-data.js';

const CONNECT_TIMEOUT_MS = 5_000;
/** Days of the kept series that a plan looks at, where nobody says otherwise. */
export const PLAN_DAYS = 70;

export type Endpoints = Pick<ResolvedConfig, 'source' | 'destination'>;

/** Throws `destination-unreachable`. */
export async function keptSeries(endpoints: Endpoints, nowMs: number, days: number): Promise<PlanData> {
  const store = new PostgresSeriesStore(() =>
    connectControl('destination', endpoints.destination, {
      ...SERIES_CONNECTION,
      connectTimeoutMs: CONNECT_TIMEOUT_MS,
    }),
  );
  try {
    const origin = `the series kept in ${endpointText(endpoints.destination)}`;
    return await dataFromStore(store, nowMs, days, origin);
  } finally {
    await store.close();
  }
}

/** The source's catalogs, or the destination's where it can't be asked; a text says why there are none. */
export async function closureOf(endpoints: Endpoints): Promise<Closure | string> {
  let reason = '';
  for (const side of ['source', 'destination'] satisfies readonly Side[]) {
    try {
      const client = await connectControl(side, endpoints[side], {
        purpose: 'plan',
        connectTimeoutMs: CONNECT_TIMEOUT_MS,
        settings: { statement_timeout: '60000', lock_timeout: '5000' },
      });
      try {
        return await readClosure(client);
      } finally {
        await client.end().catch(() => undefined);
      }
    } catch (error) {
      reason = asUnderstudyError(error, 'source-query-failed', 'reading the catalogs').message;
    }
  }
  return reason;
}
