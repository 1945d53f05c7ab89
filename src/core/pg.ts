/** node-postgres. All of src takes its values from here: see pg-begin.ts for why. */
import { lent } from './pg-begin.js';
import pg from 'pg';

if (lent) Reflect.deleteProperty(globalThis, 'navigator');

export { pg };
