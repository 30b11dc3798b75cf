import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { v7 as uuidv7 } from "uuid";
import { read, transact } from "../db/transact.ts";
import { enqueueCode } from "../delivery/queue.ts";
import { type AuthService, OtpChannel, OtpPurpose } from "../gen/auth/v1/auth_pb.ts";
import { activeTenant } from "../org/tenants.ts";
import type { Handlers } from "../rpc/methods.ts";
import { invalid, refusal } from "../rpc/refusal.ts";
import { readClient } from "./clients.ts";
import { type Contact, readContact } from "./contacts.ts";
import { originOf } from "./login-networks.ts";
import { type Channel, type PurposeCode, hashNewCode, insertCode } from "./otp-codes.ts";
import type { AuthParts } from "./parts.ts";
import { selectByContact } from "./password-proofs.ts";
import type { Limit } from "./throttles.ts";
import { lockUser } from "./users.ts";

const HOUR_MS = 3_600_000;
const PHONE_LENGTH_MAX = 32;

const CHANNELS: ReadonlyMap<OtpChannel, Channel> = new Map([
  [OtpChannel.EMAIL, "email"],
  [OtpChannel.SMS, "sms"],
  [OtpChannel.WHATSAPP, "whatsapp"],
]);

const PURPOSES: ReadonlyMap<OtpPurpose, PurposeCode> = new Map([
  [OtpPurpose.LOGIN, "login"],
  [OtpPurpose.VERIFY_EMAIL, "verify_email"],
  [OtpPurpose.VERIFY_PHONE, "verify_phone"],
  [OtpPurpose.RESET_PASSWORD, "reset_password"],
]);

/** The code's name of a value of a request's enumeration. */
const named = <K, V>(names: ReadonlyMap<K, V>, value: K, field: string): V => {
  const name = names.get(value);
  if (name === undefined) throw invalid({ field, description: "must be a defined value" });
  return name;
};

const readDestination = (channel: Channel, destination: string): Contact => {
  if (channel === "email") return readContact("email", destination, "destination");
  if (destination.length > PHONE_LENGTH_MAX) {
    throw invalid({ field: "destination", description: `must have at most ${PHONE_LENGTH_MAX} characters` });
  }
  return readContact("phone", destination, "destination");
};

const checkPurpose = (purpose: PurposeCode, { kind }: Contact) => {
  if (purpose === "verify_email" && kind !== "email") {
    throw invalid({ field: "purpose", description: "OTP_PURPOSE_VERIFY_EMAIL needs an e-mail address" });
  }
  if (purpose === "verify_phone" && kind !== "phone") {
    throw invalid({ field: "purpose", description: "OTP_PURPOSE_VERIFY_PHONE needs a phone number" });
  }
};

export const otpRequestHandlers = (parts: AuthParts) => {
  const { db, macs, throttles, channels } = parts;
  const { ttlMs, attemptMax, requestIntervalMs, requestsPerHour } = parts.config.otp;

  const limitsOf = (destination: string, purpose: PurposeCode): readonly Limit[] => [
    { subject: [destination, purpose], max: 1, windowMs: requestIntervalMs },
    { subject: [destination], max: requestsPerHour, windowMs: HOUR_MS },
  ];

  return {
    /**
     * Does the same work whether or not the destination is a user's: the code of nobody is written, counted and given to
     * the sender too, who then sends nothing.
     */
    async requestOtp(request, call) {
      const { tenantId } = request;
      const channel = named(CHANNELS, request.channel, "channel");
      const purpose = named(PURPOSES, request.purpose, "purpose");
      const contact = readDestination(channel, request.destination);
      checkPurpose(purpose, contact);
      const client = readClient(request.client);
      if (!channels.has(channel)) throw refusal("CHANNEL_UNAVAILABLE", { channel });

      const select = selectByContact(tenantId, contact, originOf(parts, tenantId, client));
      const found = activeTenant(tenantId, await read(db, call, (connection) => connection.maybeOne(select)));
      const attempt = {
        act: "code-request",
        tenantId,
        identifier: `${contact.kind}:${contact.text}`,
        client,
        networkIsKnown: found.network_is_known,
      } as const;
      const { nextMs, giveBack } = await throttles.count(call, attempt, limitsOf(contact.text, purpose));

      const otpId = uuidv7();
      let mayBeSent = false;
      const work = transact(db, call, async (tx) => {
        mayBeSent = false;
        // Whoever erases the user or changes its contact has been before us, or finds the code. No user has a code's id.
        const user = await tx.maybeOne(lockUser(tenantId, found.user_id ?? otpId));
        const isTheirs = user !== null && [user.email_addr, user.phone_e164].includes(contact.text);
        const inserted = await tx.maybeOne(
          insertCode({
            otpId,
            tenantId,
            userId: isTheirs && user.user_state_code === "active" ? user.user_id : null,
            // What a user has let go of since it was found is not written down again.
            destination: isTheirs || found.user_id === null ? contact.text : "",
            channelCode: channel,
            purposeCode: purpose,
            hash: hashNewCode(macs, otpId),
            ttlMs,
            attemptMax,
          }),
        );
        if (!inserted) return refusal("TENANT_SUSPENDED", { tenant_id: tenantId });
        await enqueueCode(tx, otpId, channel);
        mayBeSent = true;
        return inserted;
      });
      const row = await work.catch((error: unknown) => {
        // Who got no code need not wait for the next. Of what failed later, the commit may be known to nobody.
        if (!mayBeSent) void giveBack();
        throw error;
      });
      return {
        otpId,
        expireTime: timestampFromMs(row.expiry_utc),
        nextRequestTime: timestampFromMs(row.created_utc + nextMs),
      };
    },
  } satisfies Partial<Handlers<typeof AuthService>>;
};
