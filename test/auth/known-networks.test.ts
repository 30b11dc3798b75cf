import { sql } from "slonik";
import { expect, test } from "vitest";
import { launchForCodes, otherCode, requestCode } from "../support/codes.ts";
import { OTHER_PASSWORD, PASSWORD } from "../support/passwords.ts";
import { expectRefusal, refused } from "../support/refusals.ts";
import type { TestService } from "../support/service.ts";
import { addUser, uniqueEmail, uniquePhone } from "../support/users.ts";

type Client = { readonly client: { readonly ip: string } };
/** One try of the user, right or wrong. */
type TryFrom = (isRight: boolean, from: Client) => Promise<unknown>;

const HOME: Client = { client: { ip: "192.0.2.1" } };
const AWAY: readonly Client[] = ["198.51.100.1", "203.0.113.1"].map((ip) => ({ client: { ip } }));

const passwordOf = (isRight: boolean) => (isRight ? PASSWORD : OTHER_PASSWORD);

const loginBy =
  ({ auth }: TestService, tenantId: string, kind: "email" | "phone", value = ""): TryFrom =>
  (isRight, from) =>
    auth.loginWithPassword({
      tenantId,
      identifier: { case: kind, value },
      password: passwordOf(isRight),
      ...from,
    });

type User = Awaited<ReturnType<typeof addUser>>;

const WAYS_IN: Readonly<Record<string, (server: TestService, user: User) => Promise<TryFrom> | TryFrom>> = {
  "a password by e-mail": (server, { tenantId, email }) => loginBy(server, tenantId, "email", email),
  "a password by phone": (server, { tenantId, phone }) => loginBy(server, tenantId, "phone", phone),
  "a change of the password":
    ({ auth }, { tenantId, userId }) =>
    (isRight, from) =>
      auth.changePassword({
        tenantId,
        userId,
        currentPassword: passwordOf(isRight),
        newPassword: "a third one, unheard of",
        ...from,
      }),
  "a code": async (server, { tenantId, email = "" }) => {
    const sent = await requestCode(server, { tenantId, destination: email });
    return (isRight, from) =>
      server.auth.loginWithOtp({ ...sent, code: isRight ? sent.code : otherCode(sent.code), ...from });
  },
};

const loggedInAgo = ({ pool }: TestService, { userId }: User, days: number) =>
  pool.query(sql.unsafe`
    UPDATE login_networks SET last_login_utc = now() - ${days}::int * interval '1 day' WHERE user_id = ${userId}::uuid`);

test.each(Object.entries(WAYS_IN))(
  "by %s a network is known for 90 days from the last login there, and no longer",
  async (_, wayIn) => {
    const server = await launchForCodes("grpc", { THROTTLE_IDENTIFIER: "2" });
    const user = await addUser(server, { email: uniqueEmail(), phone: uniquePhone(), password: PASSWORD });
    const { tenantId } = user;
    const neighbour = await addUser(server, { tenantId, email: uniqueEmail(), password: PASSWORD });
    // Where another user logged in from counts for that one alone.
    for (const { email } of [user, neighbour]) await loginBy(server, tenantId, "email", email)(true, HOME);
    const tryFrom = await wayIn(server, user);
    const wrong = [];
    for (const away of AWAY) wrong.push((await refused(tryFrom(false, away))).reason);
    expect(wrong).not.toContain("RATE_LIMITED");
    await loggedInAgo(server, user, 91);
    await expectRefusal(tryFrom(true, HOME), "RATE_LIMITED");
    await loggedInAgo(server, user, 89);
    await tryFrom(true, HOME);
  },
);
