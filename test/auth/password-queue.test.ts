import { execFile } from "node:child_process";
import { readFile, readdir } from "node:fs/promises";
import { getPriority } from "node:os";
import { promisify } from "node:util";
import { hashSync } from "bcryptjs";
import { afterAll, describe, expect, test } from "vitest";
import { createPasswords } from "../../src/auth/passwords.ts";
import { parseConfig } from "../../src/config.ts";
import { detached, waitingUntil } from "../../src/rpc/call.ts";
import { Refusal, refusal } from "../../src/rpc/refusal.ts";
import { CHILD_ENV } from "../support/child-env.ts";

const CHEAP = { PASSWORD_HASH_MEMORY_KIB: "64", PASSWORD_HASH_PASSES: "1" };
const PASSWORD = "correct horse battery";
const closers: (() => Promise<void>)[] = [];

const passwordsOf = (env: Readonly<Record<string, string>>) => {
  const passwords = createPasswords(parseConfig({ NODE_ENV: "test", ...CHEAP, ...env }).passwords);
  closers.push(passwords.close);
  return passwords;
};

afterAll(async () => {
  await Promise.all(closers.map((close) => close()));
});

const reasonOf = (job: Promise<unknown>) =>
  job.then(
    () => "done",
    (error: unknown) => (error instanceof Refusal ? error.reason : error),
  );

test("a hash is a PHC string of our parameters with a salt of its own, and matches its password alone", async () => {
  const passwords = passwordsOf({ PASSWORD_HASH_PARALLELISM: "2" });
  const [one, two] = await Promise.all([passwords.hash(detached(), PASSWORD), passwords.hash(detached(), PASSWORD)]);
  expect(one).toMatch(/^\$argon2id\$v=19\$m=64,t=1,p=2\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$/);
  expect(two).not.toBe(one);
  expect(await passwords.verify(detached(), PASSWORD, one)).toEqual({ matches: true, outdated: false });
  expect(await passwords.verify(detached(), "another one", one)).toEqual({ matches: false, outdated: false });
});

test("composed and decomposed forms are one password, whichever was hashed", async () => {
  const passwords = passwordsOf({});
  for (const [hashed, typed] of [
    ["NFC", "NFD"],
    ["NFD", "NFC"],
  ] as const) {
    const hash = await passwords.hash(detached(), "pässwörter für Ärzte".normalize(hashed));
    const verdict = await passwords.verify(detached(), "pässwörter für Ärzte".normalize(typed), hash);
    expect(verdict).toEqual({ matches: true, outdated: false });
  }
});

test("a hash of other parameters or of another kind is outdated", async () => {
  const passwords = passwordsOf({});
  const other = await passwordsOf({ PASSWORD_HASH_PASSES: "2" }).hash(detached(), PASSWORD);
  for (const hash of [other, hashSync(PASSWORD, 4)]) {
    expect(await passwords.verify(detached(), PASSWORD, hash)).toEqual({ matches: true, outdated: true });
  }
});

test.each([null, "", "{SSHA}abc", "$argon2id$v=19$m=999999999,t=9,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA"])(
  "nothing matches %j",
  async (hash) => {
    const verdict = await passwordsOf({}).verify(detached(), PASSWORD, hash);
    expect(verdict).toEqual({ matches: false, outdated: false });
  },
);

describe("with one thread and two places in its queue", () => {
  const ONE = { PASSWORD_HASH_THREADS: "1", PASSWORD_HASH_QUEUE: "2" };
  const fill = () => {
    const passwords = passwordsOf(ONE);
    const controller = new AbortController();
    const [running, waiting, leaving] = [detached(), detached(), waitingUntil(controller.signal)].map((who) =>
      reasonOf(passwords.hash(who, PASSWORD)),
    );
    return { passwords, controller, running, waiting, leaving };
  };

  test("who finds it full is refused at once, and who waits is served", async () => {
    const { passwords, running, waiting, leaving } = fill();
    expect(passwords.queueLength()).toBe(2);
    const others = await Promise.all([1, 2, 3].map(() => reasonOf(passwords.verify(detached(), PASSWORD, null))));
    expect(others).toEqual(["OVERLOADED", "OVERLOADED", "OVERLOADED"]);
    expect(await Promise.all([running, waiting, leaving])).toEqual(["done", "done", "done"]);
    expect(passwords.queueLength()).toBe(0);
    expect(await reasonOf(passwords.hash(detached(), PASSWORD))).toBe("done");
  });

  test("a cancelled call leaves the queue, and its place to another", async () => {
    const { passwords, controller, running, waiting, leaving } = fill();
    controller.abort(refusal("CANCELLED"));
    const next = reasonOf(passwords.hash(detached(), PASSWORD));
    expect(await leaving).toBe("CANCELLED");
    expect(await Promise.all([running, waiting, next])).toEqual(["done", "done", "done"]);
  });

  test("a job under way runs to its end, and its thread goes on", async () => {
    const passwords = passwordsOf(ONE);
    await passwords.hash(detached(), PASSWORD);
    const controller = new AbortController();
    const running = reasonOf(passwords.hash(waitingUntil(controller.signal), PASSWORD));
    controller.abort(refusal("CANCELLED"));
    expect(await running).toBe("done");
    expect(await reasonOf(passwords.hash(waitingUntil(controller.signal), PASSWORD))).toBe("CANCELLED");
    expect(await reasonOf(passwords.hash(detached(), PASSWORD))).toBe("done");
  });
});

/** The priorities of this process' threads, by their ids: the 19th field, counted behind the name, which may be anything. */
const priorities = async () => {
  const ids = await readdir("/proc/self/task");
  const texts = await Promise.all(ids.map((id) => readFile(`/proc/self/task/${id}/stat`, "utf8").catch(() => "")));
  return new Map(texts.map((text, n) => [ids[n], Number(text.slice(text.lastIndexOf(")") + 2).split(" ")[16])]));
};

test.runIf(process.platform === "linux")("hashing leaves the processor to all else that wants it", async () => {
  const before = await priorities();
  await passwordsOf({}).hash(detached(), PASSWORD);
  const begun = [...(await priorities())].flatMap(([id, priority]) => (before.has(id) ? [] : [priority]));
  expect(begun).toContain(Math.min(getPriority() + 10, 19));
});

// Hashes twice while no thread can start, and once more when one can again.
const BROKEN = `
  import { createPasswords } from "./src/auth/passwords.ts";
  import { parseConfig } from "./src/config.ts";
  import { detached } from "./src/rpc/call.ts";
  const { passwords: config } = parseConfig({ NODE_ENV: "test", PASSWORD_HASH_THREADS: "1" });
  const passwords = createPasswords(config);
  const hashed = () => passwords.hash(detached(), "correct horse battery").then(
    () => "done",
    (error) => error.message + ": " + error.cause?.message,
  );
  process.env.NO_THREAD = "no memory";
  const said = await Promise.all([hashed(), hashed()]);
  delete process.env.NO_THREAD;
  console.log(JSON.stringify([...said, await hashed()]));
  await passwords.close();
`;
const PRELOAD = `data:text/javascript,
  import { isMainThread } from "node:worker_threads";
  if (!isMainThread && process.env.NO_THREAD) throw new Error(process.env.NO_THREAD);`;

test("a thread that cannot start fails those who wait for one, and nobody after them", async () => {
  const args = ["--import", PRELOAD, "--eval", BROKEN];
  const { stdout } = await promisify(execFile)(process.execPath, args, { env: CHILD_ENV });
  const failed = "no thread for passwords: no memory";
  expect(JSON.parse(stdout)).toEqual([failed, failed, "done"]);
});

test("threads end with the service, whether or not there were any, and take no more work", async () => {
  const passwords = passwordsOf({});
  await passwordsOf({}).close();
  await passwords.hash(detached(), PASSWORD);
  await passwords.close();
  expect(await reasonOf(passwords.hash(detached(), PASSWORD))).toBe("OVERLOADED");
});
