/** Something that is read again and again. */
export interface Polling {
  /** Polls now, after a poll that is under way. */
  now(): Promise<void>;
  stop(): void;
}

/**
 * Calls `poll` every `intervalMs`, and never twice at once, so that an older reading is never applied over a newer one.
 *
 * Files are polled by their content and not watched: a mounted secret is a symlink that is swapped, which ends a watch
 * on the file. The next poll is set when one has ended, so that a hanging disk gathers none.
 * @param poll never rejects.
 */
export const startPolling = (poll: () => Promise<void>, intervalMs: number): Polling => {
  let running = Promise.resolve();
  let timer: NodeJS.Timeout | undefined;
  let stopped = false;
  const now = () => (running = running.then(poll));
  const schedule = () => {
    if (!stopped) timer = setTimeout(() => void now().then(schedule), intervalMs).unref();
  };
  schedule();
  return {
    now,
    stop() {
      stopped = true;
      clearTimeout(timer);
    },
  };
};
