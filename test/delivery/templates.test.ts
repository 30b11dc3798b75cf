import { spawnSync } from "node:child_process";
import { cp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { otpPurpose } from "../../src/auth/otp-codes.ts";
import { ConfigError, parseConfig } from "../../src/config.ts";
import { loadTemplates } from "../../src/delivery/templates.ts";
import { CHILD_ENV } from "../support/child-env.ts";
import { ARRIVAL, createQueue } from "../support/deliveries.ts";
import { startMailServer } from "../support/mail-server.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";

const OWN = fileURLToPath(new URL("../../src/delivery/templates", import.meta.url));
const VARIABLES = { code: "012345", minutes: 5, tenant: "Café Nord" };

const load = (env: Readonly<Record<string, string>> = {}) => loadTemplates(parseConfig(env).delivery);

const faultsOf = (env: Readonly<Record<string, string>>) => {
  try {
    load(env);
  } catch (error) {
    if (error instanceof ConfigError) return error.faults;
    throw error;
  }
  return [];
};

const copied = async () => {
  const folder = await temporaryFolder();
  await cp(OWN, folder, { recursive: true });
  return folder;
};

test.each(otpPurpose.options)("%s: each text has the code, how long it is valid, and for whom", (purpose) => {
  const { subject, text, html, sms } = load().render(purpose, VARIABLES);
  for (const part of [text, html, sms]) {
    expect(part).toContain("012345");
    expect(part).toContain("5 min");
    expect(part).toContain("Café Nord");
  }
  expect(subject).toContain("Café Nord");
  expect(subject).not.toContain("012345");
  // One part of an SMS in UCS-2 is 70 characters, two are 134.
  expect(sms.length).toBeLessThanOrEqual(134);
});

test.each(otpPurpose.options)("%s: the first six digits are the code, whatever the label holds", (purpose) => {
  const { text, sms } = load().render(purpose, { ...VARIABLES, tenant: "Acme 654321" });
  for (const part of [text, sms]) expect(/\d{6}/.exec(part)?.[0]).toBe("012345");
});

test("a label is no template", () => {
  const { text, html } = load().render("login", { ...VARIABLES, tenant: "{{code}} <i>" });
  expect(text).toContain("{{code}} <i>");
  expect(html).toContain("{{code}} &lt;i&gt;");
});

test("a folder of one's own replaces the texts", async () => {
  const folder = await copied();
  await writeFile(join(folder, "en/login.text.mustache"), "Nimm {{{code}}}, {{minutes}} Minuten lang.");
  const [queue, server] = await Promise.all([createQueue(), startMailServer()]);
  await queue.launch({ SMTP_URL: server.url, MESSAGE_TEMPLATES_DIR: folder });
  const { code } = await queue.add();
  await expect.poll(() => server.mails[0]?.text?.trim(), ARRIVAL).toBe(`Nimm ${code}, 5 Minuten lang.`);
});

test("what is missing, no template, or without the code is named, all at once", async () => {
  const folder = await copied();
  await rm(join(folder, "en/login.subject.mustache"));
  await writeFile(join(folder, "en/login.text.mustache"), "{{#code}}");
  await writeFile(join(folder, "en/verify_email.html.mustache"), "<p>Hello</p>");
  expect(faultsOf({ MESSAGE_TEMPLATES_DIR: folder })).toEqual([
    "MESSAGE_TEMPLATES_DIR: en/login.subject.mustache cannot be read (ENOENT)",
    "MESSAGE_TEMPLATES_DIR: en/login.text.mustache is no mustache template",
    "MESSAGE_TEMPLATES_DIR: en/verify_email.html.mustache must contain {{code}}",
  ]);
});

test("what is no UTF-8 is named, for its messages would be damaged", async () => {
  const folder = await copied();
  await writeFile(join(folder, "en/login.subject.mustache"), "Ihr Schl\u00fcssel", "latin1");
  await writeFile(join(folder, "en/login.text.mustache"), "\uFEFF{{code}}");
  expect(faultsOf({ MESSAGE_TEMPLATES_DIR: folder })).toEqual([
    "MESSAGE_TEMPLATES_DIR: en/login.subject.mustache is no UTF-8",
  ]);
});

test("a locale that has no texts is named", () => {
  expect(faultsOf({ MESSAGE_LOCALE: "tlh" })).toContain(
    "MESSAGE_LOCALE: tlh/login.text.mustache cannot be read (ENOENT)",
  );
});

test("a start without its texts ends with 78", async () => {
  const folder = await temporaryFolder();
  const { status, stderr } = spawnSync(process.execPath, [join(OWN, "../../main.ts")], {
    cwd: folder,
    encoding: "utf8",
    env: {
      ...CHILD_ENV,
      DATABASE_URL: "postgresql://nobody@127.0.0.1:1/none",
      MESSAGE_TEMPLATES_DIR: join(folder, "none"),
    },
  });
  expect(stderr).toContain("MESSAGE_TEMPLATES_DIR: en/login.subject.mustache cannot be read (ENOENT)");
  expect(status).toBe(78);
});
