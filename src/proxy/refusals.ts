/** What clients are told that can't be served at present. */
import { encodeErrorResponse } from '../wire/postgres/messages.js';

export const STARTING = {
  sqlState: '57P03',
  message: 'Understudy is starting: which side serves is not known yet',
};
/** To one that is not served yet. */
export const NOT_NOW = { sqlState: '57P03', message: 'the proxy is shutting down' };
export const SHUTTING_DOWN = {
  sqlState: '57P01',
  message: 'terminating connection because the proxy is shutting down',
};

export function fatal(refusal: { readonly sqlState: string; readonly message: string }): Buffer {
  const { sqlState, message } = refusal;
  return encodeErrorResponse({ severity: 'FATAL', sqlState, message });
}
