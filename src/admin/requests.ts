/** Reading requests to the admin port: bounded bodies, checked options. */
import type { IncomingMessage } from 'node:http';
import { z } from 'zod';
import { UnderstudyError } from '../core/errors.js';
import type { Operation, OperationOptions } from './control.js';

/** Reads at most `bytesMax` and throws `limit-reached` past it. */
async function readBody(request: IncomingMessage, bytesMax: number): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > bytesMax)
      throw new UnderstudyError('limit-reached', `the request's body is larger than ${bytesMax} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

const direction = z.enum(['forward', 'reverse']).optional();
const bool = z.boolean().optional();
const subset = z.string().max(100).optional();
const OPTIONS = {
  verify: z.strictObject({
    direction,
    subset,
    tables: z.array(z.string().max(200)).max(10_000).optional(),
    repair: bool,
    resume: bool,
    value: z.number().min(0).max(1).optional(),
  }),
  resume: z.strictObject({ recopy: z.array(z.string().max(200)).max(10_000).optional() }),
  cutover: z.strictObject({ dryRun: bool, subset }),
  rollback: z.strictObject({
    dryRun: bool,
    subset,
    destinationLost: bool,
    note: z.string().max(500).optional(),
  }),
  finalize: z.strictObject({ removeFence: bool, sourceLost: bool }),
  remove: z.strictObject({ destinationLost: bool }),
  abort: z.strictObject({}),
  conflicts: z.strictObject({ limit: z.int().min(1).max(10_000).optional() }),
  shadow: z.strictObject({
    action: z.enum(['pause', 'resume', 'intensity', 'prioritise', 'skip']),
    tables: z.array(z.string().max(200)).max(10_000).optional(),
    value: z.number().min(0).max(1).optional(),
    note: z.string().max(500).optional(),
  }),
} as const satisfies Record<Operation, z.ZodType>;

/** Throws `request-invalid` for anything but a JSON object of known options. */
export async function readOptions(
  operation: Operation,
  request: IncomingMessage,
  bytesMax: number,
): Promise<OperationOptions> {
  const body = await readBody(request, bytesMax);
  // A form posted by a web page can't have this type without asking first.
  const type = request.headers['content-type'] ?? '';
  if (body !== '' && !/^application\/json(;|$)/i.test(type))
    throw new UnderstudyError('request-invalid', 'the body must be application/json');
  let value: unknown;
  try {
    value = body.trim() === '' ? {} : JSON.parse(body);
  } catch {
    throw new UnderstudyError('request-invalid', 'the body is not valid JSON');
  }
  const parsed = OPTIONS[operation].safeParse(value);
  if (!parsed.success) {
    const what = parsed.error.issues
      .map((issue) => `${issue.path.join('.') || 'body'}: ${issue.message}`)
      .join('; ');
    throw new UnderstudyError('request-invalid', `options of ${operation}: ${what}`);
  }
  return parsed.data as OperationOptions;
}
