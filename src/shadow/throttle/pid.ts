/**
 * A PID controller in velocity form, on the logarithm of its output: each step says by which factor the output changes,
 *
 *   Δ ln u = Kp·(eₖ − eₖ₋₁) + Ki·eₖ·Δt + Kd·(eₖ − 2eₖ₋₁ + eₖ₋₂) / Δt
 *
 * (Åström, Hägglund: Advanced PID Control, 2006, section 13.4). The output is bounded after each step, and as it is the
 * only state that adds up, there is nothing to wind up while it is at a bound. Errors are bounded too: one outlier is no
 * more than bad. A pure function: whoever calls it keeps the state.
 */
export interface PidSettings {
  /** Per unit of error, per unit of error and second, per unit of error per second. */
  readonly kp: number;
  readonly ki: number;
  readonly kd: number;
  readonly outputMin: number;
  readonly outputMax: number;
  readonly errorMin: number;
  readonly errorMax: number;
}

export interface PidState {
  /** From {@link PidSettings.outputMin} to {@link PidSettings.outputMax}, both above 0. */
  readonly output: number;
  /** The last errors, the latest first; null where there were none since the last gap. */
  readonly errors: readonly [number | null, number | null];
}

export function pidStart(output: number): PidState {
  return { output, errors: [null, null] };
}

/**
 * One step. `error`: by how much the measured value is below its set-point, as a share of that; positive lets the output
 * rise. null: nothing was measured; nobody is hurt then, so the output rises as by the best error there is, and the
 * next error begins anew. `seconds` since the last step, above 0.
 */
export function pidStep(
  state: PidState,
  error: number | null,
  seconds: number,
  settings: PidSettings,
): PidState {
  const { kp, ki, kd, errorMin, errorMax } = settings;
  if (error === null) {
    const output = bounded(state.output * Math.exp(ki * errorMax * seconds), settings);
    return { output, errors: [null, null] };
  }
  const e0 = Math.min(errorMax, Math.max(errorMin, error));
  const e1 = state.errors[0] ?? e0;
  const e2 = state.errors[1] ?? e1;
  const change = kp * (e0 - e1) + ki * e0 * seconds + (kd * (e0 - 2 * e1 + e2)) / seconds;
  return { output: bounded(state.output * Math.exp(change), settings), errors: [e0, e1] };
}

function bounded(output: number, { outputMin, outputMax }: PidSettings): number {
  return Math.min(outputMax, Math.max(outputMin, output));
}
