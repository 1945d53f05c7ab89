/** What an operator, or the planner, asks of a running shadow, whatever way it follows. */
import { UnderstudyError, unreachable } from '../core/errors.js';
import type { Log } from '../core/log.js';
import type { ShadowCommand, ShadowSteering, StuckChange } from '../core/ports.js';
import type { Lane } from './lane.js';
import type { Pace } from './pace.js';
import type { Throttle } from './throttle/throttle.js';

export interface SteeringContext {
  readonly pace: Pace;
  readonly throttle: Throttle;
  readonly log: Log;
  /** A change waits that long at intensity 1. */
  readonly eagerMs: number;
  /** Those whose changes may be refused. */
  readonly lanes: readonly Lane[];
  /** Whether there is such a table, as `schema.name`. */
  readonly known: (table: string) => boolean;
  /** Something is to go faster or slower than before. */
  readonly onChange: () => void;
}

export class Steering {
  readonly #context: SteeringContext;

  constructor(context: SteeringContext) {
    this.#context = context;
  }

  /** Takes effect at once. Throws `request-invalid` where there is nothing to do it to. */
  async steer(command: ShadowCommand): Promise<ShadowSteering> {
    const { pace, log, lanes, known, onChange } = this.#context;
    let skipped: StuckChange | undefined;
    switch (command.action) {
      case 'pause':
      case 'resume':
        pace.paused = command.action === 'pause';
        break;
      case 'intensity':
        pace.intensity = command.value;
        break;
      case 'prioritise':
        pace.prioritise(command.tables, known);
        break;
      case 'skip': {
        const lane = lanes.find(({ state }) => state.stuck !== null) ?? lanes[0];
        if (lane === undefined) throw new UnderstudyError('request-invalid', 'no lane is stuck at a change');
        skipped = await lane.skip(command.note);
        break;
      }
      default:
        unreachable(command);
    }
    onChange();
    log.info({ action: command.action }, 'the shadow is steered');
    return { ...this.status(), ...(skipped === undefined ? {} : { skipped }) };
  }

  status(): ShadowSteering {
    const { pace, eagerMs, lanes, throttle } = this.#context;
    return {
      paused: pace.paused,
      intensity: pace.intensity,
      flushIntervalMs: pace.intervalMs(eagerMs),
      first: pace.first,
      throttle: throttle.status(),
      stuck: lanes.flatMap(({ state: { stuck } }) => (stuck === null ? [] : [stuck])),
    };
  }
}
