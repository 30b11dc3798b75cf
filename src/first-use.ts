/**
 * What is loaded when it is first asked for, and kept. What fails is loaded anew for whoever asks next: a process that has
 * no file descriptor left for a moment must not go without it until its end.
 */
export const onFirstUse = <T>(load: () => Promise<T>): (() => Promise<T>) => {
  let loaded: Promise<T> | undefined;
  return () =>
    (loaded ??= load().catch((error: unknown) => {
      loaded = undefined;
      throw error;
    }));
};
