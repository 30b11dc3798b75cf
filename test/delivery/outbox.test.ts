import { readFile, readdir, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import type { Log } from "../../src/log.ts";
import { ARRIVAL, createQueue } from "../support/deliveries.ts";
import { loggedLines } from "../support/logged-lines.ts";
import { startTwilio } from "../support/twilio-server.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";

const files = (folder: string) => readdir(folder).catch(() => []);

const launch = async (env: Readonly<Record<string, string>> = {}, log?: Log) => {
  const [queue, dataDir] = await Promise.all([createQueue(), temporaryFolder()]);
  await queue.launch({ DATA_DIR: dataDir, ...env }, log);
  return { queue, folder: join(dataDir, "outbox") };
};

test("without a provider an e-mail is one file, for its owner's eyes", async () => {
  const { queue, folder } = await launch();
  const { otpId, code } = await queue.add({ destination: "ann@example.com", purposeCode: "reset_password" });
  await expect.poll(() => queue.jobs(), ARRIVAL).toEqual([]);
  const [file = "", ...others] = await files(folder);
  expect(others).toEqual([]);
  expect(file).toMatch(new RegExp(`^\\d{4}-\\d\\d-\\d\\dT[\\d.-]+Z-${otpId}\\.json$`));
  expect((await stat(join(folder, file))).mode & 0o777).toBe(0o600);
  expect((await stat(folder)).mode & 0o777).toBe(0o700);
  const message = JSON.parse(await readFile(join(folder, file), "utf8")) as Record<string, string>;
  expect(message).toMatchObject({ channel: "email", purpose: "reset_password", to: "ann@example.com" });
  expect(message["subject"]).toBe("Reset your password for Café Nord");
  expect(message["text"]?.match(/(?<!\d)\d{6}(?!\d)/g)).toEqual([code]);
  expect(message["html"]).toContain(code);
});

test("a code that is valid for a few seconds more is said to be valid for a minute", async () => {
  const { queue, folder } = await launch();
  await queue.add({ channelCode: "sms", destination: "+49301234567", ttlMs: 20_000 });
  await expect.poll(() => queue.jobs(), ARRIVAL).toEqual([]);
  const [file = ""] = await files(folder);
  expect(await readFile(join(folder, file), "utf8")).toContain("Valid for 1 min.");
});

test("what a configured provider does not send goes into the folder", async () => {
  const twilio = await startTwilio();
  const { queue, folder } = await launch({
    TWILIO_ACCOUNT_SID: "AC00000000000000000000000000000001",
    TWILIO_AUTH_TOKEN: "t0ken",
    TWILIO_BASE_URL: twilio.url,
    TWILIO_WHATSAPP_FROM: "+15005550007",
  });
  await queue.add({ channelCode: "sms", destination: "+49301234567" });
  await queue.add({ channelCode: "whatsapp", destination: "+49301234567" });
  await expect.poll(() => queue.jobs(), ARRIVAL).toEqual([]);
  const [file = "", ...others] = await files(folder);
  expect(others).toEqual([]);
  expect(JSON.parse(await readFile(join(folder, file), "utf8"))).toMatchObject({ channel: "sms" });
  expect(twilio.requests.map(({ form }) => form["To"])).toEqual(["whatsapp:+49301234567"]);
});

test.each(["sms", "whatsapp"] as const)("without a provider a message by %s is its short text", async (channelCode) => {
  const { queue, folder } = await launch();
  const { code } = await queue.add({ channelCode, destination: "+49301234567" });
  await expect.poll(() => queue.jobs(), ARRIVAL).toEqual([]);
  const [file = "", ...others] = await files(folder);
  expect(others).toEqual([]);
  expect(JSON.parse(await readFile(join(folder, file), "utf8"))).toEqual({
    channel: channelCode,
    purpose: "login",
    to: "+49301234567",
    text: `${code} is your sign-in code for Café Nord. Valid for 5 min. Tell nobody.`,
  });
});

test("a folder that takes no file is named in the log, and tried again", async () => {
  const logged = loggedLines();
  const { queue, folder } = await launch({}, logged.log);
  await writeFile(folder, "no folder");
  const { otpId } = await queue.add();
  const failure = { msg: "a message was not sent", otp_id: otpId, failure: "outbox EEXIST", dead: false };
  await expect.poll(() => logged.all, ARRIVAL).toContainEqual(expect.objectContaining(failure));
  await rm(folder);
  await expect.poll(async () => (await queue.jobs())[0]?.locked_by, ARRIVAL).toBeNull();
  await queue.hurry();
  await expect.poll(() => queue.jobs(), ARRIVAL).toEqual([]);
  expect(await files(folder)).toHaveLength(1);
});
