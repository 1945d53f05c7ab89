/**
 * Runs before `pg` is loaded, see pg.ts. node-postgres asks `new Response()` whether it runs at Cloudflare, and on Node 20
 * that alone loads the whole of fetch, in every thread. Where there is a `navigator` it asks that; Node has one from 21 on.
 */
export const lent = !('navigator' in globalThis);
if (lent) {
  Object.defineProperty(globalThis, 'navigator', {
    value: { userAgent: `Node.js/${process.versions.node.split('.')[0] ?? ''}` },
    configurable: true,
  });
}
