import { expect, test } from "vitest";
import { ARRIVAL, createQueue } from "../support/deliveries.ts";
import { startTwilio } from "../support/twilio-server.ts";

const SID = "AC00000000000000000000000000000001";
const SERVICE_SID = "MG00000000000000000000000000000002";
const PHONE = "+49301234567";

const launch = async (env: Readonly<Record<string, string>> = {}) => {
  const [queue, twilio] = await Promise.all([createQueue(), startTwilio()]);
  const account = { TWILIO_ACCOUNT_SID: SID, TWILIO_AUTH_TOKEN: "t0ken", TWILIO_BASE_URL: `${twilio.url}/` };
  await queue.launch({ ...account, TWILIO_FROM: "+15005550006", TWILIO_WHATSAPP_FROM: "+15005550007", ...env });
  return { queue, twilio };
};

test("an SMS is one call of Twilio's messages API", async () => {
  const { queue, twilio } = await launch();
  const { code } = await queue.add({ channelCode: "sms", destination: PHONE });
  await expect
    .poll(() => twilio.requests, ARRIVAL)
    .toEqual([
      {
        method: "POST",
        path: `/2010-04-01/Accounts/${SID}/Messages.json`,
        authorization: `Basic ${Buffer.from(`${SID}:t0ken`).toString("base64")}`,
        form: {
          To: PHONE,
          From: "+15005550006",
          Body: `${code} is your sign-in code for Café Nord. Valid for 5 min. Tell nobody.`,
        },
      },
    ]);
  await expect.poll(() => queue.jobs(), ARRIVAL).toEqual([]);
});

test.each([
  ["+15005550007", { From: "whatsapp:+15005550007" }],
  ["whatsapp:+15005550007", { From: "whatsapp:+15005550007" }],
  [SERVICE_SID, { MessagingServiceSid: SERVICE_SID }],
])("a WhatsApp message of %s names both ends as Twilio wants them", async (from, sender) => {
  const { queue, twilio } = await launch({ TWILIO_WHATSAPP_FROM: from });
  await queue.add({ channelCode: "whatsapp", destination: PHONE, purposeCode: "verify_phone" });
  await expect.poll(() => twilio.requests.length, ARRIVAL).toBe(1);
  expect(twilio.requests[0]?.form).toMatchObject({ To: `whatsapp:${PHONE}`, ...sender });
});

test("a messaging service sends instead of a number", async () => {
  const { queue, twilio } = await launch({ TWILIO_FROM: SERVICE_SID });
  await queue.add({ channelCode: "sms", destination: PHONE });
  await expect.poll(() => twilio.requests.length, ARRIVAL).toBe(1);
  expect(twilio.requests[0]?.form).toMatchObject({ To: PHONE, MessagingServiceSid: SERVICE_SID });
  expect(twilio.requests[0]?.form).not.toHaveProperty("From");
});

test("what Twilio has against a message is final; all else is tried again", async () => {
  const { queue, twilio } = await launch();
  const statuses = [400, 404, 401, 403, 408, 429, 500, 302];
  for (const [before, status] of statuses.entries()) {
    twilio.answer(status);
    await queue.add({ channelCode: "sms", destination: PHONE });
    await expect.poll(async () => (await queue.jobs())[before]?.last_error, ARRIVAL).toBe(`twilio ${status}`);
  }
  const final = (await queue.jobs()).map((job) => job.attempts === job.max_attempts);
  expect(final).toEqual(statuses.map((status) => status === 400));
});

test.each([
  [21211, "a number that is none", true],
  [21212, "a sender that is none", false],
  [21606, "a sender that cannot send there", false],
])("of code %i, %s, it is told that another try is of no use: %s", async (code, _, isFinal) => {
  const { queue, twilio } = await launch();
  twilio.answer(400);
  twilio.refuseBy(code);
  await queue.add({ channelCode: "sms", destination: PHONE });
  const job = async () => (await queue.jobs())[0];
  await expect.poll(async () => (await job())?.last_error, ARRIVAL).toBe(`twilio 400 ${code}`);
  expect((await job())?.attempts === (await job())?.max_attempts).toBe(isFinal);
});

test("an answer that does not come is waited for no longer than DELIVERY_TIMEOUT", async () => {
  const { queue, twilio } = await launch({ DELIVERY_TIMEOUT: "200ms" });
  twilio.answer(0, 201);
  await queue.add({ channelCode: "sms", destination: PHONE });
  await expect.poll(async () => (await queue.jobs())[0]?.last_error, ARRIVAL).toBe("twilio TimeoutError");
  await queue.hurry();
  await expect.poll(() => queue.jobs(), ARRIVAL).toEqual([]);
  // The second try has no more time, and on a busy machine it may be the third that is answered.
  expect(twilio.requests.length).toBeGreaterThan(1);
});
