import { KeyObject, randomUUID } from "node:crypto";
import fc from "fast-check";
import { UnsecuredJWT, exportSPKI, generateKeyPair } from "jose";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  CLIENT_ID,
  type GoogleIssuer,
  OTHER_CLIENT_ID,
  type TokenOptions,
  person,
  startGoogleIssuer,
} from "../support/google-issuer.ts";
import { expectRefusal, refused } from "../support/refusals.ts";
import { type TestService, launchService, transports } from "../support/service.ts";

const now = () => Math.floor(Date.now() / 1_000);
const FOREIGN = "somebody-elses.apps.googleusercontent.com";

describe.each(transports)("%s: an ID token", (transport) => {
  let issuer: GoogleIssuer;
  let service: TestService;
  let tenantId: string;
  beforeAll(async () => {
    issuer = await startGoogleIssuer();
    service = await launchService(transport, { env: issuer.env });
    tenantId = await service.addTenant();
  });
  afterAll(async () => {
    await service.stop();
    await issuer.close();
  });

  const login = (idToken: string, nonce?: string) =>
    service.auth.loginWithGoogle({ tenantId, idToken, createUser: true, ...(nonce !== undefined && { nonce }) });
  const loginBy = async (options?: TokenOptions) => login(await issuer.token(options));
  const claimOf = async (call: Promise<unknown>) => (await expectRefusal(call, "ID_TOKEN_INVALID")).metadata.claim;

  test.each([
    ["as Google issues it", {}],
    ["by the issuer's old name", { iss: "accounts.google.com" }],
    ["for another of our clients", { aud: OTHER_CLIENT_ID }],
    ["that another client of the same project asked for", { azp: FOREIGN }],
    ["for one audience in a list", { aud: [CLIENT_ID] }],
    ["for several audiences of ours", { aud: [CLIENT_ID, OTHER_CLIENT_ID] }],
    ["with a nonce that nobody asks about", { nonce: "n" }],
    ["with email_verified as a string", { email_verified: "true" }],
    ["by a clock a little ahead", { iat: now() + 2, nbf: now() + 2 }],
    ["with a subject of 255 characters", { sub: `9${randomUUID()}`.padEnd(255, "9") }],
  ])("%s signs in", async (_name, claims) => {
    const { created, tokens } = await loginBy({ claims: { ...person(), ...claims } });
    expect(created).toBe(true);
    expect(tokens?.refreshToken).toMatch(/^rt_/);
  });

  test.each([
    ["for another audience", { aud: FOREIGN }, "aud"],
    ["for no audience", { aud: undefined }, "aud"],
    ["for an audience that is a list of nobody", { aud: [] }, "aud"],
    ["for another audience beside ours", { aud: [CLIENT_ID, FOREIGN] }, "aud"],
    ["for several audiences, asked for by another client", { aud: [CLIENT_ID, OTHER_CLIENT_ID], azp: FOREIGN }, "aud"],
    ["for several audiences, asked for by nobody", { aud: [CLIENT_ID, OTHER_CLIENT_ID], azp: undefined }, "aud"],
    ["of another issuer", { iss: "https://accounts.google.com.evil.example" }, "iss"],
    ["of no issuer", { iss: undefined }, "iss"],
    ["that has expired", { iat: now() - 3_700, exp: now() - 60 }, "exp"],
    ["that never expires", { exp: undefined }, "exp"],
    ["whose end is no number", { exp: "tomorrow" }, "exp"],
    ["that is not yet valid", { nbf: now() + 600 }, "nbf"],
    ["that was issued in the future", { iat: now() + 600 }, "iat"],
    ["that was issued days ago", { iat: now() - 200_000 }, "iat"],
    ["without subject", { sub: undefined }, "sub"],
    ["with an empty subject", { sub: "" }, "sub"],
    ["with a subject of 256 characters", { sub: "9".repeat(256) }, "sub"],
    ["with U+0000 in its subject", { sub: "1\0" }, "sub"],
    ["with a subject that is a number", { sub: 1 }, "sub"],
    ["with a verification that is neither", { email_verified: "yes" }, "email_verified"],
  ])("%s is refused", async (_name, claims, claim) => {
    expect(await claimOf(loginBy({ claims }))).toBe(claim);
  });

  test("signed by another key is refused, whatever it says of its key", async () => {
    const { privateKey, publicKey } = await generateKeyPair("RS256");
    await expectRefusal(loginBy({ signWith: privateKey }), "ID_TOKEN_INVALID");
    const jwk = KeyObject.from(publicKey).export({ format: "jwk" });
    await expectRefusal(loginBy({ signWith: privateKey, header: { jwk } }), "ID_TOKEN_INVALID");
    await expectRefusal(loginBy({ signWith: privateKey, header: { kid: undefined } }), "ID_TOKEN_INVALID");
    await expectRefusal(loginBy({ header: { kid: undefined } }), "ID_TOKEN_INVALID");
  });

  test("of another algorithm is refused, even by keys that Google has published", async () => {
    const secret = Buffer.from(await exportSPKI(issuer.keys.publicKey));
    await expectRefusal(loginBy({ header: { alg: "HS256" }, signWith: secret }), "ID_TOKEN_INVALID");
    const { privateKey } = await generateKeyPair("ES256");
    await expectRefusal(loginBy({ header: { alg: "ES256" }, signWith: privateKey }), "ID_TOKEN_INVALID");
    const unsecured = new UnsecuredJWT({ ...person(), aud: CLIENT_ID, iss: "https://accounts.google.com" });
    const none = unsecured.setIssuedAt().setExpirationTime("1h").encode();
    await expectRefusal(login(none), "ID_TOKEN_INVALID");
    const [, payload, signature] = (await issuer.token()).split(".");
    const header = Buffer.from(JSON.stringify({ alg: "none", kid: "key-1" })).toString("base64url");
    await expectRefusal(login(`${header}.${payload}.${signature}`), "ID_TOKEN_INVALID");
  });

  test("with any part changed is refused, and so is what is no token", async () => {
    const [header, payload, signature] = (await issuer.token()).split(".");
    const other = Buffer.from(JSON.stringify({ ...person(), aud: CLIENT_ID })).toString("base64url");
    await expectRefusal(login(`${header}.${other}.${signature}`), "ID_TOKEN_INVALID");
    await expectRefusal(login(`${header}.${payload}.`), "ID_TOKEN_INVALID");
    await expectRefusal(login(`${header}.${payload}`), "ID_TOKEN_INVALID");
    expect((await expectRefusal(login(""), "INVALID_REQUEST")).fields).toEqual(["id_token"]);
    expect((await expectRefusal(login("x".repeat(4_097)), "INVALID_REQUEST")).fields).toEqual(["id_token"]);
    const text = fc.oneof(
      fc.string({ unit: "binary", minLength: 1, maxLength: 200 }),
      fc.array(fc.base64String({ maxLength: 80 }), { minLength: 1, maxLength: 5 }).map((parts) => parts.join(".")),
      fc
        .tuple(fc.jsonValue(), fc.jsonValue(), fc.base64String({ maxLength: 80 }))
        .map(([head, body, end]) =>
          [...[head, body].map((value) => Buffer.from(JSON.stringify(value)).toString("base64url")), end].join("."),
        ),
    );
    await fc.assert(
      fc.asyncProperty(text, async (idToken) => {
        expect(["ID_TOKEN_INVALID", "INVALID_REQUEST"]).toContain((await refused(login(idToken))).reason);
      }),
      { numRuns: 50 },
    );
  });

  test("must have the nonce of the request, where there is one", async () => {
    const claims = person({ nonce: "n-0S6_WzA2Mj" });
    await login(await issuer.token({ claims }), "n-0S6_WzA2Mj");
    for (const nonce of ["n-0S6_WzA2Mk", "n-0S6_WzA2M", "N-0S6_WZA2MJ", "x"]) {
      expect(await claimOf(login(await issuer.token({ claims }), nonce))).toBe("nonce");
    }
    expect(await claimOf(login(await issuer.token(), "n-0S6_WzA2Mj"))).toBe("nonce");
    expect(await claimOf(login(await issuer.token({ claims: { nonce: "" } }), "n"))).toBe("nonce");
    expect((await expectRefusal(login(await issuer.token(), ""), "INVALID_REQUEST")).fields).toEqual(["nonce"]);
  });

  test("is held to the same rules where it is linked", async () => {
    const { user } = await service.auth.createUser({ tenantId, phone: "+14155552671" });
    const link = async (options: TokenOptions, nonce?: string) =>
      service.auth.linkGoogleIdentity({
        tenantId,
        userId: user!.userId,
        idToken: await issuer.token(options),
        ...(nonce !== undefined && { nonce }),
      });
    expect(await claimOf(link({ claims: { aud: FOREIGN } }))).toBe("aud");
    expect(await claimOf(link({ claims: { iat: now() - 3_700, exp: now() - 60 } }))).toBe("exp");
    expect(await claimOf(link({ claims: { nonce: "one" } }, "other"))).toBe("nonce");
    const { privateKey } = await generateKeyPair("RS256");
    await expectRefusal(link({ signWith: privateKey }), "ID_TOKEN_INVALID");
    expect((await service.auth.listIdentities({ tenantId, userId: user!.userId })).identities).toEqual([]);
    await link({ claims: { nonce: "one" } }, "one");
  });

  test("is of no use where Google is not configured", async () => {
    const plain = await launchService(transport, { env: { GOOGLE_JWKS_URL: issuer.url } });
    try {
      const idToken = await issuer.token();
      const ids = { tenantId: await plain.addTenant(), idToken };
      const before = issuer.asked();
      await expectRefusal(plain.auth.loginWithGoogle(ids), "GOOGLE_NOT_CONFIGURED");
      const link = { ...ids, userId: randomUUID() };
      await expectRefusal(plain.auth.linkGoogleIdentity(link), "GOOGLE_NOT_CONFIGURED");
      expect(issuer.asked()).toBe(before);
    } finally {
      await plain.stop();
    }
  });
});
