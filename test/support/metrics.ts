import type { RunningServer } from "../../src/server.ts";

/** What a server tells of a metric, which is named with its labels as it writes them; undefined before it has any. */
export const metric = async ({ httpPort }: Pick<RunningServer, "httpPort">, name: string) => {
  const text = await (await fetch(`http://127.0.0.1:${httpPort}/metrics`)).text();
  const line = text.split("\n").find((one) => one.startsWith(`${name} `));
  return line === undefined ? undefined : Number(line.slice(name.length));
};
