/** Work that is done again and again. */
interface Polling {
  /** Polls now, after a poll that is under way. */
  now(): Promise<void>;
  stop(): void;
}

/**
 * Calls `poll` again and again, `intervalMs` after the former one has ended: never twice at once, so that an older reading
 * is never applied over a newer one, and what hangs gathers no others behind it.
 *
 * Also how files are followed, by their content: a mounted secret is a symlink that is swapped, which ends a watch on the
 * file.
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
