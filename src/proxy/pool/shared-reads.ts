/** The reads of one client that are under way on a shared connection. */

export class SharedReads {
  get insideAnswer(): boolean {
    return false;
  }
  whole(_chunk: Buffer): boolean {
    return false;
  }
  leading(_bytes: Buffer): number {
    return 0;
  }
  abandon(): void {}
  drained(): void {}
  cancel(_refusal: { readonly sqlState: string; readonly message: string }): void {}
}
