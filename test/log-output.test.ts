import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseError } from "pg";
import { expect, onTestFinished, test, vi } from "vitest";
import { createLog } from "../src/log.ts";
import { CHILD_ENV } from "./support/child-env.ts";

// Logs more than a pipe holds, flushes, and ends.
const SCRIPT = `
  import { createLog } from "./src/log.ts";
  const log = createLog("info");
  for (let round = 0; round < 3; round++) {
    for (let line = 0; line < 2_000; line++) log.info({ line }, "x".repeat(50));
    await new Promise(setImmediate);
  }
  process.stderr.write("alive");
  await Promise.race([new Promise((done) => log.flush(done)), new Promise((done) => setTimeout(done, 500))]);
  process.stderr.write(" flushed");
  process.kill(process.pid, "SIGKILL");
`;

// Logs as many lines as it is told, of which the first begin to be written at once, and is killed once they are flushed.
const FLUSHED = `
  import { createLog } from "./src/log.ts";
  const log = createLog("info");
  for (let line = 0; line < process.env.LINES; line++) log.info({ line }, "x".repeat(50));
  await new Promise((done) => log.flush(done));
  process.kill(process.pid, "SIGKILL");
`;

// Logs many times what a pipe holds, and says how long it took until all was read.
const MUCH = `
  import { createLog } from "./src/log.ts";
  const log = createLog("info");
  for (let line = 0; line < 50_000; line++) log.info({ line }, "x".repeat(200));
  const began = performance.now();
  await new Promise((done) => log.flush(done));
  process.stderr.write(String(performance.now() - began));
`;

// Logs more than is kept for a reader who does not read, says so, and waits until he does.
const TOO_MUCH = `
  import { createLog } from "./src/log.ts";
  const log = createLog("info");
  for (let line = 0; line < 50_000; line++) log.info({ line }, "x".repeat(500));
  process.stderr.write("full");
  await new Promise((done) => log.flush(done));
  log.info({ line: 50_000 }, "after");
  await new Promise((done) => log.flush(done));
`;

// Fills its file up to the limit, which ends a write within a line; has no room for one more; makes room, having said what
// stood there; goes on.
const FULL = `
  import { readFileSync, truncateSync } from "node:fs";
  import { createLog } from "./src/log.ts";
  process.on("SIGXFSZ", () => undefined);
  const log = createLog("info");
  const flushed = () => new Promise((done) => log.flush(done));
  for (let line = 0; line < 200; line++) log.info({ line }, "x".repeat(100));
  await flushed();
  log.info({ line: 200 }, "while it is full");
  await flushed();
  process.stderr.write(readFileSync(process.env.FILE));
  truncateSync(process.env.FILE);
  log.info({ line: 201 }, "after");
  await flushed();
  process.stderr.write(readFileSync(process.env.FILE));
`;

// Fills its file up to the limit, keeps the line that this cut off, and ends with a last line that only its exit writes.
const FULL_AT_EXIT = `
  import { appendFileSync, readFileSync, truncateSync } from "node:fs";
  import { createLog } from "./src/log.ts";
  process.on("SIGXFSZ", () => undefined);
  const log = createLog("info");
  for (let line = 0; line < 200; line++) log.info({ line }, "x".repeat(100));
  await new Promise((done) => log.flush(done));
  const cut = readFileSync(process.env.FILE, "utf8").split("\\n").at(-1);
  truncateSync(process.env.FILE);
  appendFileSync(process.env.FILE, cut);
  log.info({ line: 200 }, "after");
  process.on("exit", () => process.stderr.write(readFileSync(process.env.FILE)));
  process.exit();
`;

interface Line {
  readonly line?: number;
  readonly lines?: number;
}

const run = (stdout: number | "pipe", script = SCRIPT, env = {}): ChildProcess => {
  const args = ["--input-type=module", "--eval", script];
  const child = spawn(process.execPath, args, { env: { ...CHILD_ENV, ...env }, stdio: ["ignore", stdout, "pipe"] });
  onTestFinished(() => void child.kill("SIGKILL"));
  return child;
};

const said = async (child: ChildProcess) => {
  let text = "";
  child.stderr?.setEncoding("utf8").on("data", (part: string) => (text += part));
  await once(child, "exit");
  return text;
};

test("a line has its level by name and its time, and nothing of the machine", () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  onTestFinished(() => {
    vi.useRealTimers();
  });
  const lines: unknown[] = [];
  const log = createLog("info", { write: (line) => void lines.push(JSON.parse(line)) });
  const times = ["2026-01-02T03:04:05.678Z", "2026-01-02T03:04:05.678Z", "2026-01-02T03:04:05.679Z"];
  for (const time of times) {
    vi.setSystemTime(time);
    log.warn("msg");
  }
  expect(lines).toEqual(times.map((time) => ({ level: "warn", time, msg: "msg" })));
});

test("of what is thrown and is no error its kind alone is logged", () => {
  const lines: string[] = [];
  const log = createLog("info", { write: (line) => void lines.push(line) });
  log.error({ err: "hunter2" }, "call failed");
  log.error({ err: new Error("failed", { cause: "hunter2" }) }, "call failed");
  expect(lines.map((line) => JSON.parse(line) as object)).toMatchObject([
    { err: { type: "string" } },
    { err: { message: "failed", cause: { type: "string" } } },
  ]);
  expect(lines.join("")).not.toContain("hunter2");
});

test.each(["22P02", "23505", "42601"])(
  "what PostgreSQL says in an error of %s, which quotes values, is not logged",
  (code) => {
    const lines: string[] = [];
    const log = createLog("info", { write: (line) => void lines.push(line) });
    const quoting = Object.assign(new DatabaseError('near "hunter2"', 1, "error"), { code, detail: "hunter2" });
    log.error({ err: new Error("failed", { cause: quoting }) }, "call failed");
    expect(lines.join("")).toContain(code);
    expect(lines.join("")).not.toContain("hunter2");
  },
);

test.skipIf(process.platform !== "linux")("a full disk below the log ends nothing", async () => {
  expect(await said(run(openSync("/dev/full", "w")))).toBe("alive flushed");
});

const runOnFullDisk = (script: string): ChildProcess => {
  const folder = mkdtempSync(join(tmpdir(), "log-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const shell = 'ulimit -f 8 && exec "$0" --input-type=module --eval "$1" >> "$FILE"';
  return spawn("sh", ["-c", shell, process.execPath, script], { env: { ...CHILD_ENV, FILE: join(folder, "log") } });
};

test("a line that a full disk cut off spoils none that follows, and counts as lost", async () => {
  const lines = (await said(runOnFullDisk(FULL))).trim().split("\n");
  const whole = lines.flatMap((text) => (text.endsWith("}") ? [JSON.parse(text) as Line] : []));
  expect(lines).toHaveLength(whole.length + 1);
  expect(whole.slice(-2)).toMatchObject([{ line: 201 }, { lines: 203 - whole.length }]);
});

test("a line that a full disk cut off does not spoil what the exit writes", async () => {
  const lines = (await said(runOnFullDisk(FULL_AT_EXIT))).trim().split("\n");
  expect(lines).toHaveLength(2);
  expect(JSON.parse(lines[1]!)).toMatchObject({ line: 200, msg: "after" });
});

test("a log that nobody reads holds nothing up", async () => {
  expect(await said(run("pipe"))).toBe("alive flushed");
});

/** All that it logs until its end. */
const linesOf = async (child: ChildProcess): Promise<readonly Line[]> => {
  let text = "";
  child.stdout?.setEncoding("utf8").on("data", (part: string) => (text += part));
  await once(child, "close");
  return text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Line);
};

test("a log that is read is whole, and in order", async () => {
  const lines = await linesOf(run("pipe"));
  expect(lines.map(({ line }) => line)).toEqual(Array.from({ length: 6_000 }, (_, index) => index % 2_000));
});

// A few more than are written at once, and many times what a pipe holds.
test.each([700, 20_000])("of %i lines, all are written once they are flushed", async (count) => {
  const lines = await linesOf(run("pipe", FLUSHED, { LINES: String(count) }));
  expect(lines.map(({ line }) => line)).toEqual(Array.from({ length: count }, (_, index) => index));
});

test("lines that are lost are counted, where they are missing", async () => {
  const child = run("pipe", TOO_MUCH);
  await once(child.stderr ?? child, "data");
  const lines = await linesOf(child);
  const notice = lines.findIndex((line) => line.lines !== undefined);
  expect(lines[notice]).toMatchObject({ level: "warn", lines: 50_000 - notice });
  expect(lines[notice - 1]?.line).toBe(notice - 1);
  expect(lines.slice(notice + 1).map((line) => line.line)).toEqual([50_000]);
});

test("a log that is read is not held up by its own pauses", async () => {
  const child = run("pipe", MUCH);
  child.stdout?.resume();
  expect(Number(await said(child))).toBeLessThan(4_000);
});
