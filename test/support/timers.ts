import { onTestFinished, vi } from "vitest";

/** How many timers keep this process alive. */
export const countTimers = (): number => process.getActiveResourcesInfo().filter((kind) => kind === "Timeout").length;

/**
 * Tells from now on which timers of exactly so many milliseconds were set, until the test has finished: whatever else runs
 * in the process sets timers too.
 */
export const timersOf = (ms: number): (() => readonly { fire: () => void; timer: NodeJS.Timeout }[]) => {
  const spy = vi.spyOn(globalThis, "setTimeout");
  onTestFinished(() => spy.mockRestore());
  const timerAt = (n: number) => spy.mock.results[n]!.value as NodeJS.Timeout;
  return () => spy.mock.calls.flatMap(([fire, delay], n) => (delay === ms ? { fire, timer: timerAt(n) } : []));
};
