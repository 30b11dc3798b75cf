import { randomUUID } from "node:crypto";
import { readFile, readdir } from "node:fs/promises";
import { join } from "node:path";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { create } from "@bufbuild/protobuf";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { otpRequestHandlers } from "../../src/auth/otp-requests.ts";
import { deriveCode, hashNewCode } from "../../src/auth/otp-codes.ts";
import { OtpChannel, OtpPurpose, RequestOtpRequestSchema } from "../../src/gen/auth/v1/auth_pb.ts";
import { createMacs } from "../../src/macs.ts";
import {
  attemptsOf,
  codeOf,
  destinationsOf,
  launchForCodes,
  newCall,
  passTime,
  requestCode,
  startForCodes,
  watchStatements,
} from "../support/codes.ts";
import { ARRIVAL } from "../support/deliveries.ts";
import { untilSomebodyWaits } from "../support/lock-waiters.ts";
import { productionEnv } from "../support/production.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, transports } from "../support/service.ts";
import { lockUser } from "../support/user-rows.ts";
import { addUser, uniqueEmail, uniquePhone } from "../support/users.ts";

const { EMAIL, SMS, WHATSAPP } = OtpChannel;
const { LOGIN, RESET_PASSWORD, VERIFY_EMAIL, VERIFY_PHONE } = OtpPurpose;
const MINUTE_MS = 60_000;

const codeRow = z.object({
  user_id: z.string().nullable(),
  destination_text: z.string(),
  code_hash_text: z.string(),
  attempt_max: z.number(),
});

const storedCode = ({ pool }: TestService, otpId: string) =>
  pool.one(sql.type(codeRow)`
    SELECT user_id, destination_text, code_hash_text, attempt_max FROM otp_codes WHERE otp_id = ${otpId}::uuid`);

describe.each(transports)("%s", (transport) => {
  test("a request answers when its code expires and when another may be asked for", async () => {
    const server = await startForCodes(transport);
    const { tenantId, userId, email = "" } = await addUser(server);
    const before = Date.now();
    const answer = await server.auth.requestOtp({ tenantId, channel: EMAIL, destination: email, purpose: LOGIN });
    expect(Math.abs(timestampMs(answer.expireTime!) - before - 5 * MINUTE_MS)).toBeLessThan(10_000);
    expect(Math.abs(timestampMs(answer.nextRequestTime!) - before - MINUTE_MS)).toBeLessThan(10_000);
    const code = await codeOf(server, answer.otpId);
    expect(code).toMatch(/^\d{6}$/);
    const stored = await storedCode(server, answer.otpId);
    expect(stored).toMatchObject({ user_id: userId, destination_text: email, attempt_max: 5 });
    expect(stored.code_hash_text).toMatch(/^1:[\w-]{43}$/);
  });

  test("a destination is normalised as a user's contact is", async () => {
    const server = await startForCodes(transport);
    const [email, phone] = [uniqueEmail(), uniquePhone()];
    const { tenantId, userId } = await addUser(server, { email, phone });
    const spaced = `${phone.slice(0, 3)} (${phone.slice(3, 6)}) ${phone.slice(6)}`;
    for (const request of [
      { channel: EMAIL, destination: ` ${email.toUpperCase()} `, purpose: LOGIN },
      { channel: SMS, destination: spaced, purpose: LOGIN },
      { channel: WHATSAPP, destination: spaced, purpose: VERIFY_PHONE },
    ]) {
      const { otpId } = await requestCode(server, { tenantId: tenantId.toUpperCase(), ...request });
      expect(await storedCode(server, otpId)).toMatchObject({ user_id: userId });
    }
    const again = { tenantId, channel: EMAIL, destination: email, purpose: LOGIN };
    await expectRefusal(server.auth.requestOtp(again), "RATE_LIMITED");
  });

  test.each([
    ["an e-mail address by text message", { channel: SMS, destination: "ann@example.com" }, "destination"],
    ["a phone number by e-mail", { channel: EMAIL, destination: "+4915112345678" }, "destination"],
    ["a long phone number", { channel: WHATSAPP, destination: `+49151${" ".repeat(30)}12345678` }, "destination"],
    [
      "a phone number to verify an e-mail",
      { channel: SMS, destination: "+4915112345678", purpose: VERIFY_EMAIL },
      "purpose",
    ],
    ["an e-mail to verify a phone", { channel: EMAIL, destination: "a@example.com", purpose: VERIFY_PHONE }, "purpose"],
    ["an unspecified channel", { channel: OtpChannel.UNSPECIFIED, destination: "a@example.com" }, "channel"],
    ["an unknown channel", { channel: 9 as OtpChannel, destination: "a@example.com" }, "channel"],
    [
      "an unspecified purpose",
      { channel: EMAIL, destination: "a@example.com", purpose: OtpPurpose.UNSPECIFIED },
      "purpose",
    ],
    ["no address", { channel: EMAIL, destination: "a@example.com", client: { ip: "127.1" } }, "client.ip"],
  ])("%s is refused, with the field", async (_name, request, field) => {
    const { auth, addTenant } = await startForCodes(transport);
    const call = auth.requestOtp({ tenantId: await addTenant(), purpose: LOGIN, ...request });
    expect((await expectRefusal(call, "INVALID_REQUEST")).fields).toEqual([field]);
  });

  test("tenants that are unknown, suspended or another's are refused", async () => {
    const server = await startForCodes(transport);
    const [tenantId, other] = [await server.addTenant(), await server.addTenant()];
    const request = { channel: EMAIL, destination: uniqueEmail(), purpose: LOGIN };
    await expectRefusal(server.auth.requestOtp({ tenantId: randomUUID(), ...request }), "TENANT_NOT_FOUND");
    const { auth } = await server.addService(["auth.login"], other);
    await expectRefusal(auth.requestOtp({ tenantId, ...request }), "TENANT_MISMATCH");
    await server.org.suspendTenant({ tenantId });
    await expectRefusal(server.auth.requestOtp({ tenantId, ...request }), "TENANT_SUSPENDED");
  });

  test("a new code ends the former of the same destination and purpose, and no other", async () => {
    const server = await startForCodes(transport);
    const { tenantId, email: destination = "" } = await addUser(server);
    const reset = await requestCode(server, { tenantId, destination, purpose: RESET_PASSWORD });
    const former = await requestCode(server, { tenantId, destination });
    await passTime(server, MINUTE_MS);
    const latest = await requestCode(server, { tenantId, destination });
    const { tenantId: elsewhere } = await addUser(server, { email: destination });
    await requestCode(server, { tenantId: elsewhere, destination });
    await expectRefusal(server.auth.loginWithOtp(former), "INVALID_CODE");
    expect(await attemptsOf(server, former)).toMatchObject({ attempt_count: 0 });
    await server.auth.loginWithOtp(latest);
    await expectRefusal(server.auth.loginWithOtp(former), "INVALID_CODE");
    await server.auth.resetPassword({ ...reset, newPassword: "correct horse battery" });
  });

  test("a code is sent to a user, and nothing to nobody", async () => {
    const server = await startForCodes(transport);
    const tenantId = await server.addTenant();
    const { user, ...others } = await destinationsOf(server, tenantId);
    for (const destination of Object.values(others)) await requestCode(server, { tenantId, destination });
    const { code } = await requestCode(server, { tenantId, destination: user });
    const folder = server.config.delivery.outboxDir!;
    const sent = async () => {
      const files = await readdir(folder).catch(() => []);
      return Promise.all(files.map((file) => readFile(join(folder, file), "utf8")));
    };
    await expect.poll(sent, ARRIVAL).toContainEqual(expect.stringContaining(user));
    const messages = await sent();
    expect(messages.find((message) => message.includes(user))).toContain(code);
    for (const destination of Object.values(others)) {
      expect(messages.filter((message) => message.includes(destination))).toEqual([]);
    }
  });
});

test("where no provider is configured a request is refused before anything is asked of users", async () => {
  const server = await launchForCodes("grpc", {
    ...productionEnv(),
    TWILIO_ACCOUNT_SID: "AC00000000000000000000000000000000",
    TWILIO_AUTH_TOKEN: "token",
    TWILIO_FROM: "+15005550006",
  });
  for (const tenantId of [await server.addTenant(), randomUUID()]) {
    for (const request of [
      { channel: EMAIL, destination: uniqueEmail() },
      { channel: WHATSAPP, destination: uniquePhone() },
    ]) {
      await expectRefusal(server.auth.requestOtp({ tenantId, purpose: LOGIN, ...request }), "CHANNEL_UNAVAILABLE");
    }
  }
});

test("a provider that has no number for SMS sends none", async () => {
  const server = await launchForCodes("grpc", {
    ...productionEnv(),
    TWILIO_ACCOUNT_SID: "AC00000000000000000000000000000000",
    TWILIO_AUTH_TOKEN: "token",
    TWILIO_WHATSAPP_FROM: "+15005550006",
  });
  const request = { tenantId: randomUUID(), purpose: LOGIN, destination: uniquePhone() };
  await expectRefusal(server.auth.requestOtp({ ...request, channel: SMS }), "CHANNEL_UNAVAILABLE");
  await expectRefusal(server.auth.requestOtp({ ...request, channel: WHATSAPP }), "TENANT_NOT_FOUND");
});

test("whoever has the destination, the same statements run", async () => {
  const server = await startForCodes("grpc");
  const { statements, parts } = watchStatements(server);
  const { requestOtp } = otpRequestHandlers(parts);
  const statementsFor = async (tenantId: string, destination: string) => {
    statements.length = 0;
    const request = { tenantId, channel: EMAIL, destination, purpose: LOGIN, client: { ip: "192.0.2.1" } };
    const answer = await requestOtp(create(RequestOtpRequestSchema, request), newCall());
    expect(Object.keys(answer)).toEqual(["otpId", "expireTime", "nextRequestTime"]);
    return [...statements];
  };
  const tenantId = await server.addTenant();
  const destinations = await destinationsOf(server, tenantId);
  await statementsFor(tenantId, uniqueEmail());
  const expected = await statementsFor(tenantId, destinations.nobody);
  expect(expected.length).toBeGreaterThan(3);
  for (const [name, destination] of Object.entries(destinations)) {
    if (name !== "nobody") expect(await statementsFor(tenantId, destination)).toEqual(expected);
  }
});

test.each([
  ["is erased", null, "inactive"],
  ["gets another e-mail", uniqueEmail(), "active"],
])("a user who %s while a code is requested has none, and its former e-mail is not written down", async (...change) => {
  const [, email, state] = change;
  const server = await startForCodes("grpc");
  const { pool, auth } = server;
  const user = await addUser(server);
  const destination = user.email!;
  const { asked } = await pool.transaction(async (tx) => {
    await tx.query(lockUser(user));
    const request = auth.requestOtp({ tenantId: user.tenantId, channel: EMAIL, destination, purpose: LOGIN });
    await untilSomebodyWaits(tx);
    await tx.query(sql.unsafe`
      UPDATE users SET email_addr = ${email}, user_state_code = ${state} WHERE user_id = ${user.userId}::uuid`);
    return { asked: request };
  });
  const { otpId } = await asked;
  expect(await storedCode(server, otpId)).toMatchObject({ user_id: null, destination_text: "" });
  const guess = { tenantId: user.tenantId, otpId, code: await codeOf(server, otpId) };
  await expectRefusal(auth.loginWithOtp(guess), "INVALID_CODE");
});

test("in a tenant that is suspended while a code is requested, none is made", async () => {
  const server = await startForCodes("grpc");
  const { tenantId, userId, email = "" } = await addUser(server);
  const { asked } = await server.pool.transaction(async (tx) => {
    await tx.query(lockUser({ userId }));
    const request = server.auth.requestOtp({ tenantId, channel: EMAIL, destination: email, purpose: LOGIN });
    const answer = expectRefusal(request, "TENANT_SUSPENDED");
    await untilSomebodyWaits(tx);
    await server.org.suspendTenant({ tenantId });
    return { asked: answer };
  });
  await asked;
});

test("a code is derived from its id by the pepper that it was made under", () => {
  const [one, two] = [1, 2].map((version) => ({ version, key: Buffer.alloc(32, version) }));
  const [before, between, after] = [[one!], [one!, two!], [two!]].map((peppers) => createMacs(peppers));
  const codes = new Set<string>();
  for (let n = 0; n < 1_000; n++) {
    const otpId = randomUUID();
    const hash = hashNewCode(before!, otpId);
    const code = deriveCode(before!, otpId, hash)!;
    expect(code).toMatch(/^\d{6}$/);
    expect(deriveCode(between!, otpId, hash)).toBe(code);
    expect(deriveCode(after!, otpId, hash)).toBeUndefined();
    codes.add(code);
  }
  // By chance a thousand of a million codes have half a pair among them.
  expect(codes.size).toBeGreaterThan(985);
  expect([...codes].filter((code) => code.startsWith("0")).length).toBeGreaterThan(50);
});
