/** What an import takes from a configuration: where series are kept, and the catalogs by which names are resolved. */
import { readCatalog } from '../../capture/catalog-read.js';
import type { CatalogSnapshot } from '../../capture/catalog.js';
import { PostgresSeriesStore, SERIES_CONNECTION } from '../../capture/series-store.js';
import { asUnderstudyError } from '../../core/errors.js';
import { connectControl } from '../../core/postgres.js';
import type { ResolvedConfig } from '../config.js';
import { endpointText } from '../config/endpoint.js';
import type { SeriesTarget } from './import-run.js';

/** What this installation hashes keys with. Throws `destination-unreachable`. */
export async function installationSecret(config: ResolvedConfig): Promise<Buffer> {
  const store = new PostgresSeriesStore(() =>
    connectControl('destination', config.destination, SERIES_CONNECTION),
  );
  try {
    return await store.secret();
  } finally {
    await store.close();
  }
}

export interface OpenedStore extends SeriesTarget {
  /** For messages. */
  readonly name: string;
  close(): Promise<void>;
}

/** Throws `destination-unreachable` at once, rather than after a long log was read. */
export async function openStore(config: ResolvedConfig): Promise<OpenedStore> {
  const connect = (): ReturnType<typeof connectControl> =>
    connectControl('destination', config.destination, SERIES_CONNECTION);
  await (await connect()).end();
  const store = new PostgresSeriesStore(connect);
  return {
    name: `the schema understudy of ${endpointText(config.destination)}`,
    append: (batch) => store.append(batch),
    close: () => store.close(),
  };
}

/** The source's catalogs, or why there are none: then names stay as they are written. */
export async function catalogOf(config: ResolvedConfig): Promise<CatalogSnapshot | string> {
  try {
    const client = await connectControl('source', config.source, { purpose: 'import' });
    try {
      return await readCatalog(client);
    } finally {
      await client.end();
    }
  } catch (error) {
    return asUnderstudyError(error, 'source-query-failed', 'reading the catalogs').message;
  }
}
