import { execFile } from "node:child_process";
import { once } from "node:events";
import { createWriteStream, existsSync, readFileSync } from "node:fs";
import { open, readFile, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { importer, people, reportOf, runImport, startImport, writeLines } from "../support/import-command.ts";
import { launchService, startService } from "../support/service.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";

test("a line ends at a line feed alone, and what is no UTF-8, or too large by itself, is refused by its line", async () => {
  const server = await launchService("grpc", { env: { MESSAGE_MAX_BYTES: "2048" } });
  const tenantId = await server.addTenant();
  const names = ["Smith\u2028Co", "Jones\u2029Co", "x".repeat(190)];
  const file = await writeLines([
    ...names.map((name, n) => ({ email: `line${n}@example.com`, display_name: name })),
    ...Array.from({ length: 60 }, (_, n) => ({ email: `person${n}@example.com`, display_name: "y".repeat(190) })),
    // What frames a person in the message is as much as these are.
    ...Array.from({ length: 200 }, (_, n) => ({ email: `${n}@a.b` })),
    { email: "large@example.com", password_hash: "\u{1f600}".repeat(500) },
  ]);
  const text = await readFile(file);
  const latin = Buffer.from('{"email":"latin@example.com","display_name":"M\xfcller"}', "latin1");
  await writeFile(file, Buffer.concat([Buffer.from("\ufeff"), text, latin]));
  const env = { ...(await importer(server)), MESSAGE_MAX_BYTES: "2048" };
  const { code, stdout } = await runImport([file, "--tenant", tenantId], server, env);
  expect([code, stdout]).toEqual([1, expect.stringContaining("263 created")]);
  const report = await reportOf(file);
  expect(report.map(({ line }) => line)).toEqual(Array.from({ length: 265 }, (_, n) => n + 1));
  expect(report.slice(263).map(({ detail }) => detail)).toEqual([
    "larger than MESSAGE_MAX_BYTES lets through",
    "no UTF-8",
  ]);
  const { users } = await server.auth.listUsers({ tenantId, prefix: "line" });
  expect(users.map(({ displayName }) => displayName)).toEqual(names);
  await server.stop();
});

test("a line that is too long for any person is refused by its line, and not held in memory", async () => {
  const server = await startService("grpc");
  const tenantId = await server.addTenant();
  const file = await writeLines([{ email: "before@example.com" }]);
  const more = createWriteStream(file, { flags: "a" });
  for (let n = 0; n < 300; n++) if (!more.write("x".repeat(1_048_576))) await once(more, "drain");
  more.end('\n{"email":"after@example.com"}\n');
  await once(more, "close");
  const { child, finished } = startImport([file, "--tenant", tenantId], server, await importer(server));
  let peakKib = 0;
  const watch = setInterval(() => {
    const status = existsSync(`/proc/${child.pid}/status`) ? readFileSync(`/proc/${child.pid}/status`, "utf8") : "";
    peakKib = Math.max(peakKib, Number(/VmHWM:\s*(\d+)/.exec(status)?.[1] ?? 0));
  }, 50);
  const { code, stdout } = await finished;
  clearInterval(watch);
  expect([code, stdout]).toEqual([1, expect.stringContaining("2 created, 0 unchanged, 1 refused")]);
  expect((await reportOf(file))[1]?.detail).toContain("longer than");
  expect(peakKib).toBeLessThan(300 * 1_024);
});

test("a line may have 1048576 bytes, and no more", async () => {
  const server = await startService("grpc");
  const tenantId = await server.addTenant();
  const lines = [1_048_576, 1_048_577].map((bytes) => `{"email":"${bytes}@example.com"}`.padEnd(bytes));
  const file = await writeLines(lines);
  const { stdout } = await runImport([file, "--tenant", tenantId], server, await importer(server));
  expect(stdout).toContain("1 created, 0 unchanged, 1 refused");
  expect((await reportOf(file))[1]?.detail).toContain("longer than 1048576 bytes");
});

test("each line is reported in its order, and one that does not fit keeps back no other", async () => {
  const server = await startService("grpc");
  const tenantId = await server.addTenant();
  const file = await writeLines([
    {
      email: "ann@example.com",
      email_verified: true,
      create_time: "2014-05-06T07:08:09Z",
      state: "USER_STATE_INACTIVE",
    },
    { phone: "+14155552671", displayName: "Bob" },
    "no JSON",
    "",
    { email: "c@example.com", e_mail: "misspelled" },
    { email: 7 },
    "[]",
    { email: "d@example.com", user_id: "no id" },
    { email: "ann@example.com", display_name: "Other" },
    { email: "last@example.com" },
  ]);
  const first = await runImport([file, "--tenant", tenantId], server, await importer(server));
  expect(first).toEqual({
    code: 1,
    stdout: `3 created, 0 unchanged, 6 refused (1 EMAIL_TAKEN, 5 INVALID_REQUEST); each line: ${file}.report\n`,
    stderr: "",
  });
  const report = await reportOf(file);
  expect(report.map(({ line, status, reason }) => [line, reason ?? status])).toEqual([
    [1, "IMPORT_STATUS_CREATED"],
    [2, "IMPORT_STATUS_CREATED"],
    [3, "INVALID_REQUEST"],
    [5, "INVALID_REQUEST"],
    [6, "INVALID_REQUEST"],
    [7, "INVALID_REQUEST"],
    [8, "INVALID_REQUEST"],
    [9, "EMAIL_TAKEN"],
    [10, "IMPORT_STATUS_CREATED"],
  ]);
  expect(report[2]?.detail).toBe("no JSON");
  expect(report[3]?.detail).toContain("e_mail");
  expect(report[6]?.detail).toMatch(/^user_id: /);
  const { user } = await server.auth.getUser({ tenantId, key: { case: "userId", value: report[0]?.user_id ?? "" } });
  expect(user).toMatchObject({ email: "ann@example.com", emailVerified: true });
  expect((await stat(`${file}.report`)).mode & 0o777).toBe(0o600);
});

test("what the server would refuse without a word is told by its field", async () => {
  const server = await startService("grpc");
  const tenantId = await server.addTenant();
  const file = await writeLines([
    { email: "no address" },
    { email: "ann@example.com", phone: "030 123456" },
    { display_name: "Nobody" },
    { email: "ann@example.com", phone_verified: true },
    { email: "ann@example.com", google_subject: "é" },
    { email: "ann@example.com", state: "USER_STATE_ERASED" },
  ]);
  const { stdout } = await runImport([file, "--tenant", tenantId], server, await importer(server));
  expect(stdout).toContain("0 created, 0 unchanged, 6 refused (6 INVALID_REQUEST)");
  expect((await reportOf(file)).map(({ detail }) => detail?.split(":")[0])).toEqual([
    "email",
    "phone",
    "email, phone",
    "phone_verified",
    "google_subject",
    "state",
  ]);
});

test("a file that changes while it is read is no success, for people may be missing", async () => {
  const server = await startService("grpc");
  const tenantId = await server.addTenant();
  const file = await writeLines(people(2));
  const DATA_DIR = await temporaryFolder();
  const secret = join(DATA_DIR, "root.secret");
  await promisify(execFile)("mkfifo", [secret]);
  const { finished } = startImport([file, "--tenant", tenantId], server, { DATA_DIR });
  // It opens once somebody reads it, which is after the people's file was opened.
  const told = await open(secret, "w");
  await truncate(file, (await readFile(file, "utf8")).indexOf("\n") + 1);
  await told.writeFile(`${server.rootSecret}\n`);
  await told.close();
  expect(await finished).toEqual({
    code: 1,
    stdout: `1 created, 0 unchanged, 0 refused; each line: ${file}.report\n`,
    stderr: `${file} has changed while it was read: run it again\n`,
  });
});
