const ends: (() => Promise<unknown>)[] = [];

/** Has this done when the running file has ended: vitest drops an `afterAll` that a test calls, and says nothing. */
export const onFileFinished = (end: () => Promise<unknown>): void => void ends.push(end);

/** Ends what the running file has left, the last begun first. */
export const finishFile = async (): Promise<void> => {
  for (let end = ends.pop(); end; end = ends.pop()) await end();
};

/** Makes one for each key, when it is first asked for. The next file, which may run in the same process, gets another. */
export const oncePerFile = <Key, T>(make: (key: Key) => Promise<T>): ((key: Key) => Promise<T>) => {
  const made = new Map<Key, Promise<T>>();
  return (key) => {
    const present = made.get(key);
    if (present) return present;
    const one = make(key);
    made.set(key, one);
    onFileFinished(() => Promise.resolve(made.clear()));
    return one;
  };
};
