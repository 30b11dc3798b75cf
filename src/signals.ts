import { constants } from "node:os";

// npm and the terminal's process group both deliver the same signal: what follows within this time is the same one.
const SAME_SIGNAL_MS = 1_000;
const SIGNALS = ["SIGINT", "SIGTERM"] as const;

/** Stops once, at the first signal; a second one, when it is not the first's echo, ends the process at once. */
export const stopOnSignal = (stop: (signal: NodeJS.Signals) => void): void => {
  let firstAt: number | undefined;
  for (const signal of SIGNALS) {
    // Those of `early-signals.ts`.
    process.removeAllListeners(signal);
    process.on(signal, () => {
      if (firstAt !== undefined) {
        if (performance.now() - firstAt > SAME_SIGNAL_MS) process.exit(128 + constants.signals[signal]);
        return;
      }
      firstAt = performance.now();
      stop(signal);
    });
  }
};
