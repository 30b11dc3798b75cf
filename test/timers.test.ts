import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { afterSilence } from "../src/timers.ts";

const LIMIT_MS = 50;
const fire = vi.fn();
let heldUpMs: number;

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "setImmediate", "clearImmediate", "performance"] });
  const now = performance.now.bind(performance);
  heldUpMs = 60_000;
  vi.spyOn(performance, "now").mockImplementation(() => now() + heldUpMs);
});
afterEach(() => {
  vi.restoreAllMocks();
  vi.useRealTimers();
  fire.mockReset();
});

/** The loop does nothing for so long, and then runs what is due. */
const holdUp = (ms: number) => {
  heldUpMs += ms;
  vi.advanceTimersToNextTimer();
};

test("a silence is told once its time is over, not before, and not where it was taken back", () => {
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
});

test("what has come in is read first, and may take it back", () => {
  const takeBack = afterSilence(LIMIT_MS, fire);
  vi.advanceTimersByTime(LIMIT_MS);
  takeBack();
  vi.advanceTimersToNextTimer();
  expect(fire).not.toHaveBeenCalled();
});

test("the time in which our own loop was held up begins the wait anew, once", () => {
  afterSilence(LIMIT_MS, fire);
  holdUp(LIMIT_MS + 1_000);
  vi.advanceTimersByTime(LIMIT_MS - 1);
  expect(fire).not.toHaveBeenCalled();
  holdUp(LIMIT_MS + 1_000);
  vi.advanceTimersToNextTimer();
  expect(fire).toHaveBeenCalledOnce();
});
