import { readFileSync } from "node:fs";
import { status } from "@grpc/grpc-js";
import { expect, test } from "vitest";
import { parseConfig } from "../src/config.ts";
import { openDatabase } from "../src/db/pool.ts";
import { environment } from "../src/environment.ts";
import { createDeliveryMetrics } from "../src/delivery/metrics.ts";
import { createLog } from "../src/log.ts";
import { createMetrics } from "../src/rpc/metrics.ts";
import { REASONS } from "../src/rpc/refusal.ts";

const root = new URL("../", import.meta.url);
const readme = readFileSync(new URL("README.md", root), "utf8");
const manifest = JSON.parse(readFileSync(new URL("package.json", root), "utf8")) as Record<
  "scripts" | "dependencies" | "devDependencies",
  Record<string, string>
>;

/** The cells of a section's tables, without the rows of headings; every cell but an allowed empty one says something. */
const rowsOf = (heading: string): string[][] => {
  const [, section = ""] = readme.split(`\n## ${heading}\n`);
  const lines = section.split(/\n## /, 1)[0]?.split("\n") ?? [];
  return lines
    .filter((line, index) => line.startsWith("| ") && !/^\| -/.test(line) && !lines[index + 1]?.startsWith("| -"))
    .map((line) =>
      line
        .slice(1, -1)
        .split("|")
        .map((cell) => cell.trim()),
    );
};
const code = (text: string) => `\`${text}\``;

test("the table of errors has every reason with its code, in the order of the code", () => {
  const rows = rowsOf("Errors");
  expect(rows.map(([reason, name]) => [reason, name])).toEqual(
    Object.entries(REASONS).map(([reason, answer]) => [code(reason), status[answer.code as number]]),
  );
  for (const [reason, , when] of rows) expect(when, `when ${reason}`).not.toBe("");
});

test("the table of dependencies has every package, and why", () => {
  const rows = rowsOf("Dependencies");
  const packages = [...Object.keys(manifest.dependencies), ...Object.keys(manifest.devDependencies)];
  expect(rows.map(([name]) => name).toSorted()).toEqual(packages.map(code).toSorted());
  for (const [name, why] of rows) expect(why, `why ${name}`).not.toBe("");
});

test("the table of commands has every npm script", () => {
  const short = ["start", "test"];
  const commands = Object.keys(manifest.scripts).map((name) =>
    code(short.includes(name) ? `npm ${name}` : `npm run ${name}`),
  );
  expect(
    rowsOf("Commands")
      .map(([command]) => command)
      .toSorted(),
  ).toEqual(commands.toSorted());
});

test("the table of important variables has the code's defaults", () => {
  const defaults = rowsOf("Configuration").map(([name = "", value]) => {
    const schema = environment.shape[name.replaceAll("`", "") as keyof typeof environment.shape];
    expect(schema, `${name} is a variable`).toBeDefined();
    const inCode = "defaultValue" in schema.def && schema.def.defaultValue ? code(schema.def.defaultValue) : "";
    return { name, value, inCode };
  });
  expect(defaults.length).toBeGreaterThan(5);
  for (const { name, value, inCode } of defaults) expect(value, name).toBe(inCode);
});

test("the table of metrics has every metric of our own", () => {
  const metrics = createMetrics("test");
  metrics.watchPool(() => ({ inside: 0, waiting: 0 }));
  metrics.watchPasswordQueue(() => 0);
  const log = createLog("silent");
  // Only a scrape asks it.
  const db = openDatabase({ url: "postgresql://localhost/none", settings: parseConfig({}).database, log });
  createDeliveryMetrics(metrics.registry, db, log);
  const own = metrics.registry
    .getMetricsAsArray()
    .map(({ name }) => name)
    .filter((name) => !/^(process|nodejs)_/.test(name));
  expect(
    rowsOf("Observability")
      .map(([name]) => name)
      .toSorted(),
  ).toEqual(own.map(code).toSorted());
});

test("every link leads to a file", () => {
  for (const [, path = ""] of readme.matchAll(/\]\((?!https?:)([^)#]+)\)/g)) {
    expect(() => readFileSync(new URL(path, root)), path).not.toThrow(/ENOENT/);
  }
});
