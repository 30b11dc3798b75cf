import { createServer } from "node:net";
import { expect, onTestFinished, test } from "vitest";
import { makeAuthority, makeIdentity } from "../support/certificates.ts";
import { ARRIVAL, createQueue } from "../support/deliveries.ts";
import { startMailServer } from "../support/mail-server.ts";
import { listenOn } from "../support/ports.ts";

const address = (value: unknown) => (value as { readonly value: readonly object[] }).value;

test("a code arrives as an e-mail whose text has it as six digits", async () => {
  const [queue, server] = await Promise.all([createQueue(), startMailServer()]);
  await queue.launch({ SMTP_URL: server.url });
  const { otpId, code } = await queue.add({ destination: "ann@example.com", label: "Tom & <b>Jerry</b>" });
  await expect.poll(() => server.mails.length, ARRIVAL).toBe(1);
  const [mail] = server.mails;
  expect(code).toMatch(/^\d{6}$/);
  expect(mail?.text?.match(/(?<!\d)\d{6}(?!\d)/g)).toEqual([code]);
  expect(mail?.html).toContain(code);
  expect(address(mail?.from)).toEqual([{ name: "Example", address: "no-reply@example.org" }]);
  expect(address(mail?.to)).toEqual([{ name: "", address: "ann@example.com" }]);
  expect(mail?.messageId).toBe(`<${otpId}@example.org>`);
  // Who is away does not answer it (RFC 3834, 2).
  expect(mail?.headers.get("auto-submitted")).toBe("auto-generated");
  await expect.poll(() => queue.jobs(), ARRIVAL).toEqual([]);
});

test("a tenant's label is text in text and escaped in HTML", async () => {
  const [queue, server] = await Promise.all([createQueue(), startMailServer()]);
  await queue.launch({ SMTP_URL: server.url });
  await queue.add({ label: "Tom & <b>Jerry</b>\nBcc: eve@example.com" });
  await expect.poll(() => server.mails.length, ARRIVAL).toBe(1);
  const [mail] = server.mails;
  expect(mail?.subject).toBe("Your sign-in code for Tom & <b>Jerry</b> Bcc: eve@example.com");
  expect(mail?.bcc).toBeUndefined();
  expect(mail?.text).toContain("Tom & <b>Jerry</b>");
  expect(mail?.html).toContain("Tom &amp; &lt;b&gt;Jerry&lt;&#x2F;b&gt;");
  expect(mail?.html).not.toContain("<b>Jerry");
});

test("a tenant's label has no lines of its own in the text", async () => {
  const [queue, server] = await Promise.all([createQueue(), startMailServer()]);
  await queue.launch({ SMTP_URL: server.url });
  const { code } = await queue.add({ label: "Acme.\r\n\r\nYour account is locked:\u0085call Eve\u001b[8m" });
  await expect.poll(() => server.mails.length, ARRIVAL).toBe(1);
  const [first] = server.mails[0]?.text?.split("\n") ?? [];
  expect(first).toBe(`${code} is your sign-in code for Acme. Your account is locked: call Eve [8m.`);
});

test("a list of addresses is no list of recipients", async () => {
  const [queue, server] = await Promise.all([createQueue(), startMailServer()]);
  await queue.launch({ SMTP_URL: server.url });
  await queue.add({ destination: "ann@example.com,eve@example.com" });
  await expect.poll(async () => (await queue.jobs())[0]?.attempts ?? server.mails.length, ARRIVAL).toBeGreaterThan(0);
  expect(server.mails.flatMap(({ to }) => address(to))).not.toContainEqual({ name: "", address: "eve@example.com" });
});

test.each([
  ["recipient", 550, "smtp EENVELOPE 550", true],
  ["recipient", 450, "smtp EENVELOPE 450", false],
  // What is wrong with us and not with the message: somebody will mend it.
  ["recipient", 503, "smtp EENVELOPE 503", false],
  ["sender", 530, "smtp EENVELOPE 530", false],
  ["sender", 550, "smtp EENVELOPE 550", false],
] as const)("a %s refused with %i fails as '%s', for ever: %s", async (whom, status, failure, final) => {
  const [queue, server] = await Promise.all([createQueue(), startMailServer()]);
  server.refuse(status, whom);
  await queue.launch({ SMTP_URL: server.url });
  await queue.add();
  await expect.poll(async () => (await queue.jobs())[0]?.last_error, ARRIVAL).toBe(failure);
  const [job] = await queue.jobs();
  expect(job?.attempts === job?.max_attempts).toBe(final);
});

test("a message that the server refuses once it has it fails for ever, and none that it only defers", async () => {
  const [queue, server] = await Promise.all([createQueue(), startMailServer()]);
  await queue.launch({ SMTP_URL: server.url });
  for (const [before, status] of [552, 452].entries()) {
    server.refuse(status, "message");
    await queue.add();
    await expect.poll(async () => (await queue.jobs())[before]?.last_error, ARRIVAL).toBe(`smtp EMESSAGE ${status}`);
  }
  expect((await queue.jobs()).map((job) => job.attempts === job.max_attempts)).toEqual([true, false]);
});

test("a server that talks without an end is listened to no longer than DELIVERY_TIMEOUT", async () => {
  const queue = await createQueue();
  const talking = createServer((socket) => {
    const talk = setInterval(() => socket.write("250-more\r\n"), 20);
    socket.on("error", () => undefined).on("close", () => clearInterval(talk));
    socket.resume().write("220 mail.example\r\n");
  });
  onTestFinished(() => void talking.close());
  const port = await listenOn(talking);
  await queue.launch({ SMTP_URL: `smtp://127.0.0.1:${port}`, DELIVERY_TIMEOUT: "300ms" });
  await queue.add();
  await expect.poll(async () => (await queue.jobs())[0]?.last_error, ARRIVAL).toMatch(/^smtp /);
});

test("TLS is as the URL says: a certificate is verified unless it says otherwise", async () => {
  const identity = await makeIdentity("localhost", await makeAuthority("nobody's"));
  const [queue, server] = await Promise.all([createQueue(), startMailServer(identity)]);
  const strict = await queue.launch({ SMTP_URL: server.url });
  await queue.add();
  await expect.poll(async () => (await queue.jobs())[0]?.last_error, ARRIVAL).toMatch(/^smtp /);
  expect(server.mails).toEqual([]);
  await strict.stop();
  await queue.hurry();
  await queue.launch({ SMTP_URL: `${server.url}?tls.rejectUnauthorized=false` });
  await expect.poll(() => server.mails.length, ARRIVAL).toBe(1);
});

test.each([
  ['"Acme @home" <no-reply@example.org>', "Acme @home"],
  ["Acme, Inc. <no-reply@example.org>", "Acme, Inc."],
  ["Müller <no-reply@example.org>", "Müller"],
  ["no-reply@example.org", ""],
])("MAIL_FROM=%s is one sender, and its domain the message id's", async (from, name) => {
  const [queue, server] = await Promise.all([createQueue(), startMailServer()]);
  await queue.launch({ SMTP_URL: server.url, MAIL_FROM: from });
  const { otpId } = await queue.add();
  await expect.poll(() => server.mails.length, ARRIVAL).toBe(1);
  expect(server.mails[0]?.from?.value).toEqual([{ address: "no-reply@example.org", name }]);
  expect(server.mails[0]?.messageId).toBe(`<${otpId}@example.org>`);
});
