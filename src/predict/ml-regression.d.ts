/** The library brings no types; these are of what is used here. */
declare module 'ml-regression' {
  export class TheilSenRegression {
    constructor(x: readonly number[], y: readonly number[]);
    predict(x: number): number;
  }
  export class PolynomialRegression {
    constructor(x: readonly number[], y: readonly number[], degree: number);
    predict(x: number): number;
  }
}
