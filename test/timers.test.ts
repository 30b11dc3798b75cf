import { expect, test, vi } from "vitest";
import { afterSilence } from "../src/timers.ts";

const LIMIT_MS = 50;

interface Loop {
  readonly fire: () => void;
  /** Does nothing for so long, and then runs what is due. */
  holdUp(ms: number): void;
}

/** A test of the loop's own clock and timers, in one turn: nothing else in the process sees those. */
const withLoop = (body: (loop: Loop) => void) => () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "setImmediate", "clearImmediate", "performance"] });
  const now = performance.now.bind(performance);
  let heldUpMs = 60_000;
  const clock = vi.spyOn(performance, "now").mockImplementation(() => now() + heldUpMs);
  const holdUp = (ms: number) => {
    heldUpMs += ms;
    vi.advanceTimersToNextTimer();
  };
  try {
    body({ fire: vi.fn(), holdUp });
  } finally {
    clock.mockRestore();
    vi.useRealTimers();
  }
};

test(
  "a silence is told once its time is over, not before, and not where it was taken back",
  withLoop(({ fire }) => {
    afterSilence(LIMIT_MS, fire);
    vi.advanceTimersByTime(LIMIT_MS - 1);
    expect(fire).not.toHaveBeenCalled();
    vi.advanceTimersByTime(1);
    vi.advanceTimersToNextTimer();
    expect(fire).toHaveBeenCalledOnce();

    const takeBack = afterSilence(LIMIT_MS, fire);
    takeBack();
    vi.advanceTimersByTime(10 * LIMIT_MS);
    expect(fire).toHaveBeenCalledOnce();
  }),
);

test(
  "what has come in is read first, and may take it back",
  withLoop(({ fire }) => {
    const takeBack = afterSilence(LIMIT_MS, fire);
    vi.advanceTimersByTime(LIMIT_MS);
    takeBack();
    vi.advanceTimersToNextTimer();
    expect(fire).not.toHaveBeenCalled();
  }),
);

test(
  "the time in which our own loop was held up begins the wait anew, once",
  withLoop(({ fire, holdUp }) => {
    afterSilence(LIMIT_MS, fire);
    holdUp(LIMIT_MS + 1_000);
    vi.advanceTimersByTime(LIMIT_MS - 1);
    expect(fire).not.toHaveBeenCalled();
    holdUp(LIMIT_MS + 1_000);
    vi.advanceTimersToNextTimer();
    expect(fire).toHaveBeenCalledOnce();
  }),
);
