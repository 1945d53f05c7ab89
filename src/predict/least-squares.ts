import { CholeskyDecomposition, Matrix } from 'ml-matrix';
import { add, at } from './numeric.js';

/**
 * Weighted ridge regression by normal equations, one row at a time: `(XᵀWX + λ·diag(XᵀWX)) b = XᵀWy`. The penalty is
 * scaled by each column's own size, which is ridge on standardised columns without a pass to standardise them; the
 * last column is the intercept and is not penalised. (Hoerl & Kennard, Technometrics 12, 1970.)
 */
export class LeastSquares {
  readonly columns: number;
  readonly #gram: Float64Array;
  readonly #moment: Float64Array;
  #weight = 0;

  constructor(columns: number) {
    this.columns = columns;
    this.#gram = new Float64Array(columns * columns);
    this.#moment = new Float64Array(columns);
  }

  add(row: Float64Array, offset: number, target: number, weight: number): void {
    const { columns } = this;
    const gram = this.#gram;
    this.#weight += weight;
    for (let i = 0; i < columns; i++) {
      const scaled = weight * at(row, offset + i);
      if (scaled === 0) continue;
      add(this.#moment, i, scaled * target);
      const base = i * columns;
      for (let j = 0; j <= i; j++) add(gram, base + j, scaled * at(row, offset + j));
    }
  }

  /** Coefficients, the intercept last. Zeros (the intercept too) where nothing was added. */
  solve(lambda: number): Float64Array {
    const { columns } = this;
    const system = Matrix.zeros(columns, columns);
    for (let i = 0; i < columns; i++) {
      for (let j = 0; j < i; j++) {
        const value = at(this.#gram, i * columns + j);
        system.set(i, j, value);
        system.set(j, i, value);
      }
      const own = at(this.#gram, i * columns + i);
      const penalty = i === columns - 1 ? 0 : lambda * own;
      // The floor keeps columns that are constantly zero (and their coefficients at zero) solvable.
      system.set(i, i, own + penalty + 1e-9 * (this.#weight + 1));
    }
    const cholesky = new CholeskyDecomposition(system);
    if (!cholesky.isPositiveDefinite()) {
      // Columns that repeat one another but for rounding: a heavier penalty always ends this.
      return this.solve(Math.max(lambda * 10, 1e-6));
    }
    const solved = cholesky.solve(Matrix.columnVector(this.#moment));
    return Float64Array.from({ length: columns }, (_, i) => solved.get(i, 0));
  }
}
