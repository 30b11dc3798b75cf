/** A statement without what stands in parentheses: its subqueries, and the beginnings of a WITH. */
const outermost = (text: string): string => {
  const shorter = text.replace(/\([^()]*\)/g, "");
  return shorter === text ? text : outermost(shorter);
};

/** What a statement is called in traces: the name that it is prepared under, or what it does to which table. No values. */
export const summaryOf = (text: string, name: string | undefined): string => {
  if (name !== undefined) return name;
  const own = outermost(text);
  const [verb = ""] = /\b(?:SELECT|INSERT|UPDATE|DELETE)\b/.exec(own) ?? /\w+/.exec(own) ?? [];
  const [, table = ""] = /\b(?:FROM|INTO|UPDATE)\s+(\w+)/.exec(own) ?? [];
  return `${verb} ${table}`.trim();
};
