/**
 * One operation at a time, and how each is carried out.
 *
 * States: idle ⇄ running(operation). `abort` alone may come while another runs: it asks that one to undo itself.
 * An operation is not bound to who asked for it: a caller that goes away changes nothing.
 */
import type { Operation, OperationLine, OperationOptions } from '../admin/control.js';
import type { Direction, ShadowCommand, ShadowControl, SubsetId, VerifyOptions } from '../core/ports.js';
import { UnderstudyError, unreachable } from '../core/errors.js';
import { subsetAsked } from '../core/subsets.js';
import type { CutoverCoordinator } from '../cutover/coordinator.js';
import type { Log } from '../core/log.js';

export interface OperationDeps {
  readonly coordinator: CutoverCoordinator;
  readonly shadow: ShadowControl;
  /** All there are. */
  readonly subsets: readonly SubsetId[];
  /**
   * Which way the subset's changes flow by the present route, or all changes. Throws `request-invalid` where that is not
   * the same for all.
   */
  readonly direction: (subset: SubsetId | undefined) => Direction;
  /** Whether the sides lead different subsets. */
  readonly parted: () => boolean;
  /** Throws `route-unknown` while it is not known which side leads. */
  readonly requireRoute: () => void;
  /** Ends both streams for good, for finalize and remove. */
  readonly retireShadow: () => Promise<void>;
  /** Ends the keeping of what is captured, for remove. */
  readonly retireCapture: () => Promise<void>;
  /** Takes over the route an operation left behind. */
  readonly onSettled: () => Promise<void>;
  readonly log: Log;
}

const CONFLICTS_SHOWN = 100;

type Emit = (line: OperationLine) => void;
/** As of a cutover's or rollback's options: asked before the first client waits. */
export type Confirm = (subsets: readonly SubsetId[]) => Promise<void>;

interface Running {
  readonly operation: Operation;
  readonly controller: AbortController;
  readonly finished: Promise<unknown>;
}

export class Operations {
  readonly #deps: OperationDeps;
  #running: Running | undefined;

  constructor(deps: OperationDeps) {
    this.#deps = deps;
  }

  get running(): boolean {
    return this.#running !== undefined;
  }

  /** Throws `busy`, and whatever the operation throws. */
  async operate(
    operation: Operation,
    options: OperationOptions,
    emit: Emit,
    confirm?: Confirm,
  ): Promise<unknown> {
    if (operation === 'abort') return this.#abort();
    if (operation === 'conflicts') return await this.#deps.shadow.conflicts(options.limit ?? CONFLICTS_SHOWN);
    if (operation === 'shadow') return await this.#deps.shadow.steer(commandOf(options));
    if (this.#running !== undefined) {
      throw new UnderstudyError('busy', `${this.#running.operation} is running`, {
        advice: 'Wait for it (`understudy status --watch`), or end it with `understudy abort`.',
      });
    }
    const controller = new AbortController();
    const finished = this.#carryOut(operation, options, emit, controller.signal, confirm);
    this.#running = { operation, controller, finished };
    try {
      return await finished;
    } finally {
      this.#running = undefined;
    }
  }

  /** Asks the running operation to undo itself and waits until it has ended, either way. */
  async close(): Promise<void> {
    const running = this.#running;
    if (running === undefined) return;
    this.#abort();
    await running.finished.catch(() => undefined);
  }

  #abort(): { readonly aborted: boolean } {
    const running = this.#running;
    if (running === undefined) return { aborted: false };
    const byCoordinator = this.#deps.coordinator.abort();
    // A switch ends by the coordinator's own judgement; the rest by cancellation.
    if (running.operation === 'cutover' || running.operation === 'rollback')
      return { aborted: byCoordinator };
    running.controller.abort(new UnderstudyError('cancelled', `${running.operation} was aborted on request`));
    return { aborted: true };
  }

  async #carryOut(
    operation: Exclude<Operation, 'abort' | 'shadow' | 'conflicts'>,
    options: OperationOptions,
    emit: Emit,
    signal: AbortSignal,
    confirm: Confirm | undefined,
  ): Promise<unknown> {
    const { coordinator, shadow, log } = this.#deps;
    log.info({ operation, options }, 'operation begins');
    // Who led may never be known again where the destination is gone: that is what the decision is for.
    if (operation !== 'rollback' || options.destinationLost !== true) this.#deps.requireRoute();
    switch (operation) {
      case 'verify':
        if (options.repair === true && this.#deps.parted()) {
          throw new UnderstudyError(
            'request-invalid',
            'rows are repaired only while one side leads everything',
            {
              advice: 'Run `understudy verify` without --repair, and roll back first.',
            },
          );
        }
        return shadow.verify(
          {
            direction: options.direction ?? this.#deps.direction(options.subset),
            ...(await this.#tablesOf(options)),
            ...(options.repair === undefined ? {} : { repair: options.repair }),
            ...(options.resume === undefined ? {} : { resume: options.resume }),
            ...(options.value === undefined ? {} : { intensity: options.value }),
          },
          signal,
          (progress) => emit({ event: 'verify-progress', progress }),
        );
      case 'resume':
        await shadow.resume({ recopy: options.recopy ?? [] }, signal);
        return { resumed: true };
      case 'cutover':
      case 'rollback':
        try {
          if (options.destinationLost === true) return await this.#abandonDestination(options, signal);
          return await coordinator[operation]({
            ...(options.dryRun === undefined ? {} : { dryRun: options.dryRun }),
            ...(options.subset === undefined ? {} : { subset: options.subset }),
            signal,
            onEvent: emit,
            confirm,
          });
        } finally {
          await this.#deps.onSettled();
        }
      case 'finalize':
        try {
          return await coordinator.finalize({
            removeFence: options.removeFence ?? false,
            sourceLost: options.sourceLost ?? false,
            stopShadow: () => this.#deps.retireShadow(),
            signal,
          });
        } finally {
          await this.#deps.onSettled();
        }
      case 'remove':
        return coordinator.remove({
          destinationLost: options.destinationLost ?? false,
          stopWriters: async () => {
            await this.#deps.retireShadow();
            await this.#deps.retireCapture();
          },
          signal,
        });
      default:
        return unreachable(operation);
    }
  }

  /** Tables that were named, or those of a subset. */
  async #tablesOf({ tables, subset }: OperationOptions): Promise<Pick<VerifyOptions, 'tables'>> {
    if (subset === undefined) return tables === undefined ? {} : { tables };
    if (tables !== undefined)
      throw new UnderstudyError('request-invalid', 'tables and a subset exclude one another');
    const members = await this.#deps.shadow.tables(subsetAsked(this.#deps.subsets, subset));
    return { tables: members.map(({ schema, name }) => `${schema}.${name}`) };
  }

  async #abandonDestination(
    options: OperationOptions,
    signal: AbortSignal,
  ): Promise<{ readonly epoch: number; readonly destinationLost: true }> {
    const note = options.note ?? 'declared lost by the operator';
    const epoch = await this.#deps.coordinator.abandonDestination(note, signal, options.subset);
    return { epoch, destinationLost: true };
  }
}

/** Throws `request-invalid` for an intensity without a value. */
function commandOf({ action, value, note, tables }: OperationOptions): ShadowCommand {
  switch (action) {
    case 'pause':
    case 'resume':
      return { action };
    case 'skip':
      return { action, note: note ?? '' };
    case 'prioritise':
      return { action, tables: tables ?? [] };
    case 'intensity':
      if (value !== undefined) return { action, value };
      throw new UnderstudyError('request-invalid', 'an intensity needs a value from 0 to 1');
    case undefined:
      throw new UnderstudyError(
        'request-invalid',
        'which action? pause, resume, intensity, prioritise or skip',
      );
    default:
      return unreachable(action);
  }
}
