/** Whether two lists hold the same, in whatever order and however often. */
export const sameSet = (a: readonly string[], b: readonly string[]): boolean =>
  new Set(a).symmetricDifference(new Set(b)).size === 0;
