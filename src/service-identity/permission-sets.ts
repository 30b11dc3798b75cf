/**
 * Permissions are dotted and hierarchical: `*` covers all, `org.*` covers every `org.…` but not `org`, and anything else
 * covers itself alone.
 */
export const covers = (held: readonly string[], wanted: string): boolean =>
  held.some(
    (permission) =>
      permission === wanted ||
      permission === "*" ||
      (permission.endsWith(".*") && wanted.startsWith(permission.slice(0, -1))),
  );

/** The permissions that both sets cover, in order and without those that another of the result covers. */
export const intersection = (a: readonly string[], b: readonly string[]): string[] => {
  const both = [...new Set([...a.filter((p) => covers(b, p)), ...b.filter((p) => covers(a, p))])];
  return both.filter((p) => !both.some((other) => other !== p && covers([other], p))).sort();
};
