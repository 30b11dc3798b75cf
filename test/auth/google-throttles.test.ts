import { sql } from "slonik";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type GoogleIssuer, person, startGoogleIssuer } from "../support/google-issuer.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, launchService, transports } from "../support/service.ts";
import { addUser } from "../support/users.ts";

const ACCOUNT_MAX = 2;
const ADDRESS_MAX = 3;
const TENANT_MAX = 8;

describe.each(transports)("%s: tries to sign in with Google", (transport) => {
  let issuer: GoogleIssuer;
  let service: TestService;
  let tenantId: string;
  beforeAll(async () => {
    issuer = await startGoogleIssuer();
    issuer.publish({ "cache-control": "no-store" });
    const limits = {
      THROTTLE_IDENTIFIER_ADDRESS: String(ACCOUNT_MAX),
      THROTTLE_ADDRESS: String(ADDRESS_MAX),
      THROTTLE_TENANT: String(TENANT_MAX),
    };
    service = await launchService(transport, { env: { ...issuer.env, THROTTLES: "on", ...limits } });
  });
  beforeEach(async () => {
    tenantId = await service.addTenant();
  });
  afterAll(async () => {
    await service.stop();
    await issuer.close();
  });

  const login = async (claims: object, ip = "192.0.2.1") =>
    service.auth.loginWithGoogle({
      tenantId,
      idToken: await issuer.token({ claims: { ...claims } }),
      createUser: true,
      client: { ip },
    });
  const times = async (count: number, work: () => Promise<unknown>) => {
    for (let n = 0; n < count; n++) await work();
  };
  const NOT_OURS = { aud: "somebody-elses.apps.googleusercontent.com" };

  test("count by network and by tenant where they fail, and say when to try again", async () => {
    const who = person();
    await times(ADDRESS_MAX, () => expectRefusal(login(NOT_OURS), "ID_TOKEN_INVALID"));
    const { error } = await expectRefusal(login(who, "192.0.2.99"), "RATE_LIMITED");
    expect(JSON.stringify(error.details)).toContain("RetryInfo");
    await login(who, "192.0.3.1");
    const moreNetworks = ["198.51.100.1", "203.0.113.1"];
    for (const ip of moreNetworks) {
      await times(2, () => expectRefusal(login(NOT_OURS, ip), "ID_TOKEN_INVALID"));
    }
    await expectRefusal(login(NOT_OURS, "198.51.101.1"), "ID_TOKEN_INVALID");
    await expectRefusal(login(NOT_OURS, "198.51.102.1"), "RATE_LIMITED");
    await expectRefusal(login(who, "192.0.4.1"), "RATE_LIMITED");
    await service.pool.query(sql.unsafe`UPDATE throttles SET window_end_utc = now() - interval '1 day'`);
    expect((await login(who)).created).toBe(false);
  });

  test("of others refuse nobody where he logged in from", async () => {
    const who = person();
    await login(who, "192.0.2.1");
    await times(ADDRESS_MAX, () => expectRefusal(login(NOT_OURS), "ID_TOKEN_INVALID"));
    await expectRefusal(login(person()), "RATE_LIMITED");
    await login(who, "192.0.2.7");
    const networks = Array.from({ length: TENANT_MAX - ADDRESS_MAX }, (_, n) => `198.51.${n}.1`);
    for (const ip of networks) await expectRefusal(login(NOT_OURS, ip), "ID_TOKEN_INVALID");
    await expectRefusal(login(person(), "203.0.113.1"), "RATE_LIMITED");
    expect((await login(who)).created).toBe(false);
  });

  test("of others refuse nobody where he logged in from in the last 90 days, and no longer", async () => {
    const who = person();
    await login(who);
    await times(ADDRESS_MAX, () => expectRefusal(login(NOT_OURS), "ID_TOKEN_INVALID"));
    const loggedInAgo = (days: number) =>
      service.pool.query(sql.unsafe`
        UPDATE login_networks SET last_login_utc = now() - ${days}::int * interval '1 day'
        WHERE tenant_id = ${tenantId}::uuid`);
    await loggedInAgo(91);
    await expectRefusal(login(who), "RATE_LIMITED");
    await loggedInAgo(89);
    expect((await login(who)).created).toBe(false);
  });

  test("of one account are counted by it, wherever they come from", async () => {
    const [who, other] = [person({ email_verified: false }), person()];
    await times(ACCOUNT_MAX, () => expectRefusal(login(who), "INVALID_CREDENTIALS"));
    await expectRefusal(login(who), "RATE_LIMITED");
    expect((await login(other)).created).toBe(true);
  });

  test.each([
    ["INVALID_CREDENTIALS", { email_verified: false }],
    ["LINK_REQUIRED", {}],
  ] as const)("count where they are answered %s", async (reason, claims) => {
    const who = person(claims);
    await addUser(service, { tenantId, email: who.email });
    await times(ACCOUNT_MAX, () => expectRefusal(login(who), reason));
    await expectRefusal(login(who), "RATE_LIMITED");
  });

  test("do not count where they succeed, nor where who tries is not to blame", async () => {
    const who = person();
    await times(TENANT_MAX + 1, () => login(who));
    await service.org.suspendTenant({ tenantId });
    await times(TENANT_MAX + 1, () => expectRefusal(login(who), "TENANT_SUSPENDED"));
    await service.org.activateTenant({ tenantId });
    await issuer.down();
    await times(TENANT_MAX + 1, () => expectRefusal(login(who), "IDENTITY_PROVIDER_UNAVAILABLE"));
    await issuer.up();
    expect((await login(who)).created).toBe(false);
  });
});
