import { createHmac, randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { SignJWT, createLocalJWKSet, decodeJwt, decodeProtectedHeader, importJWK, jwtVerify } from "jose";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { makeJwk } from "../../src/dev-keys.ts";
import { TokenReason } from "../../src/gen/auth/v1/auth_pb.ts";
import type { TestJwk } from "../support/keys-file.ts";
import { type TestService, jwtKeysFile, launchService, startService, transports } from "../support/service.ts";
import { type SignedIn, signInBy } from "../support/sign-in.ts";

const base64 = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");

/** The key that the server signs with. */
const serverKey = async ({ config }: TestService) => {
  const { keys } = JSON.parse(await readFile(jwtKeysFile(config), "utf8")) as { keys: [TestJwk] };
  return keys[0];
};

interface Forgery {
  readonly claims?: Record<string, unknown>;
  readonly header?: Record<string, unknown>;
  readonly key?: TestJwk;
}

/** A token like a good one, but for what is named. */
const forge = async (service: TestService, { accessToken }: SignedIn, { claims, header, key }: Forgery) => {
  const jwk = key ?? (await serverKey(service));
  return new SignJWT({ ...decodeJwt(accessToken), ...claims })
    .setProtectedHeader({ ...decodeProtectedHeader(accessToken), ...header, alg: "EdDSA" })
    .sign(await importJWK(jwk as never, "EdDSA"));
};

const malformed: Record<string, (service: TestService, good: SignedIn) => Promise<string> | string> = {
  "no JWT": () => "a token",
  "a service token": ({ rootToken }) => rootToken,
  "a refresh token": (_, { refreshToken }) => refreshToken,
  "two parts": (_, { accessToken }) => accessToken.split(".").slice(0, 2).join("."),
  "a payload that is no JSON": (_, { accessToken }) => accessToken.replace(/\.[^.]*\./, ".bm8."),
  "another typ": (service, good) => forge(service, good, { header: { typ: "JWT" } }),
  "no typ": (service, good) => forge(service, good, { header: { typ: undefined } }),
  "another issuer": (service, good) => forge(service, good, { claims: { iss: "somebody" } }),
  "another audience": (service, good) => forge(service, good, { claims: { aud: "somebody" } }),
  "a session that is no id": (service, good) => forge(service, good, { claims: { sid: "1' OR true" } }),
  "no expiry": (service, good) => forge(service, good, { claims: { exp: undefined } }),
  "an expiry that no time can hold": (service, good) => forge(service, good, { claims: { exp: 9e15 } }),
};

const unsigned: Record<string, (service: TestService, good: SignedIn) => Promise<string> | string> = {
  "another key under our kid": async (service, good) =>
    forge(service, good, { key: { ...makeJwk(), kid: (await serverKey(service)).kid } }),
  "an unknown kid": (service, good) => forge(service, good, { header: { kid: "unknown" } }),
  "no kid": (service, good) => forge(service, good, { header: { kid: undefined } }),
  "alg none": (_, { accessToken }) => {
    const [, payload] = accessToken.split(".");
    return `${base64({ ...decodeProtectedHeader(accessToken), alg: "none" })}.${payload}.`;
  },
  "HS256 with the public key": async (service, { accessToken }) => {
    const { x } = await serverKey(service);
    const [, payload] = accessToken.split(".");
    const body = `${base64({ ...decodeProtectedHeader(accessToken), alg: "HS256" })}.${payload}`;
    return `${body}.${createHmac("sha256", Buffer.from(x ?? "", "base64url"))
      .update(body)
      .digest("base64url")}`;
  },
  "another payload": (_, { accessToken }) => {
    const [header, , signature] = accessToken.split(".");
    return `${header}.${base64({ ...decodeJwt(accessToken), sub: randomUUID() })}.${signature}`;
  },
  "another spelling of its signature": (_, { accessToken }) => {
    const last = { A: "B", Q: "R", g: "h", w: "x" }[accessToken.at(-1) ?? ""];
    return `${accessToken.slice(0, -1)}${last}`;
  },
};

const expectReason = async ({ auth }: Pick<TestService, "auth">, accessToken: string, reason: TokenReason) => {
  expect(await auth.verifyAccessToken({ accessToken })).toEqual({
    $typeName: "auth.v1.VerifyAccessTokenResponse",
    active: false,
    userId: "",
    tenantId: "",
    sessionId: "",
    reason,
  });
};

describe.each(transports)("%s", (transport) => {
  test("a token is a JWT of RFC 9068 that the published keys verify, and lives for ACCESS_TOKEN_TTL", async () => {
    const service = await startService(transport);
    const { accessToken, userId, tenantId, sessionId } = await (await signInBy(service))();
    const { jwksJson } = await service.auth.getJwks({});
    const keys = createLocalJWKSet(JSON.parse(jwksJson) as Parameters<typeof createLocalJWKSet>[0]);
    const { payload, protectedHeader } = await jwtVerify(accessToken, keys, { algorithms: ["EdDSA"], typ: "at+jwt" });
    expect(protectedHeader).toEqual({ alg: "EdDSA", typ: "at+jwt", kid: (await serverKey(service)).kid });
    expect(payload).toEqual({
      iss: "auth-service",
      aud: "auth-service",
      sub: userId,
      tid: tenantId,
      sid: sessionId,
      jti: expect.stringMatching(/^[0-9a-f-]{36}$/) as string,
      iat: expect.any(Number) as number,
      exp: payload.iat! + 600,
    });
    const verified = await service.auth.verifyAccessToken({ accessToken });
    expect(verified).toMatchObject({ active: true, userId, tenantId, sessionId, reason: TokenReason.OK });
    expect(Number(verified.expireTime?.seconds)).toBe(payload.exp);
  });

  test.each(Object.keys(malformed))("%s is MALFORMED", async (name) => {
    const service = await startService(transport);
    const good = await (await signInBy(service))();
    await expectReason(service, await malformed[name]!(service, good), TokenReason.MALFORMED);
  });

  test.each(Object.keys(unsigned))("%s is SIGNATURE", async (name) => {
    const service = await startService(transport);
    const good = await (await signInBy(service))();
    await expectReason(service, await unsigned[name]!(service, good), TokenReason.SIGNATURE);
  });

  test("of several reasons the first counts: expiry, user, session, tenant", async () => {
    const service = await startService(transport);
    const { pool, org, auth } = service;
    const signedIn = await (await signInBy(service))();
    const { accessToken, userId, tenantId, sessionId } = signedIn;
    const { exp = 0 } = decodeJwt(accessToken);
    await org.suspendTenant({ tenantId });
    await expectReason(service, accessToken, TokenReason.TENANT_SUSPENDED);
    await auth.revokeSession({ tenantId, sessionId });
    await expectReason(service, accessToken, TokenReason.SESSION_ENDED);
    await pool.query(sql.unsafe`UPDATE users SET user_state_code = 'inactive' WHERE user_id = ${userId}::uuid`);
    await expectReason(service, accessToken, TokenReason.USER_INACTIVE);
    const expired = await forge(service, signedIn, { claims: { exp: exp - 601 } });
    await expectReason(service, expired, TokenReason.EXPIRED);
  });

  test("what ends takes hold at once, and what begins again too", async () => {
    const service = await startService(transport);
    const { pool, org } = service;
    const { accessToken, userId, tenantId, sessionId } = await (await signInBy(service))();
    await org.suspendTenant({ tenantId });
    await expectReason(service, accessToken, TokenReason.TENANT_SUSPENDED);
    await org.activateTenant({ tenantId });
    expect((await service.auth.verifyAccessToken({ accessToken })).active).toBe(true);
    await pool.query(sql.unsafe`UPDATE refresh_sessions SET expiry_utc = now() WHERE session_id = ${sessionId}::uuid`);
    await expectReason(service, accessToken, TokenReason.SESSION_ENDED);
    await pool.query(sql.unsafe`DELETE FROM refresh_sessions WHERE user_id = ${userId}::uuid`);
    await expectReason(service, accessToken, TokenReason.SESSION_ENDED);
  });

  test("a user's deactivation and erasure are named, and a session that either ended stays ended", async () => {
    const service = await startService(transport);
    const { auth } = service;
    const { accessToken, userId, tenantId } = await (await signInBy(service))();
    await auth.deactivateUser({ tenantId, userId });
    await expectReason(service, accessToken, TokenReason.USER_INACTIVE);
    await auth.activateUser({ tenantId, userId });
    await expectReason(service, accessToken, TokenReason.SESSION_ENDED);
    await auth.eraseUser({ tenantId, userId });
    await expectReason(service, accessToken, TokenReason.USER_INACTIVE);
  });

  test("a signed token whose session is another user's or tenant's is none of that session's", async () => {
    const service = await startService(transport);
    const signIn = await signInBy(service);
    const good = await signIn();
    const other = await signIn({ tenantId: good.tenantId });
    for (const claims of [{ sid: other.sessionId }, { tid: await service.addTenant() }]) {
      await expectReason(service, await forge(service, good, { claims }), TokenReason.SESSION_ENDED);
    }
  });

  test("a service of another tenant sees a token as an unknown one, whatever became of it", async () => {
    const service = await startService(transport);
    const signedIn = await (await signInBy(service))();
    const { accessToken, tenantId } = signedIn;
    const own = await service.addService(["auth.token.verify"], tenantId);
    const stranger = await service.addService(["auth.token.verify"], await service.addTenant());
    expect((await own.auth.verifyAccessToken({ accessToken })).active).toBe(true);
    await expectReason(stranger, accessToken, TokenReason.SESSION_ENDED);
    await service.org.suspendTenant({ tenantId });
    await expectReason(stranger, accessToken, TokenReason.SESSION_ENDED);
    const expired = await forge(service, signedIn, { claims: { exp: 1 } });
    await expectReason(stranger, expired, TokenReason.EXPIRED);
  });
});

test("500 verifications at once each get the answer to their own token", async () => {
  const service = await startService("grpc");
  const signIn = await signInBy(service);
  const { tenantId } = await signIn();
  const signedIn = await Promise.all(Array.from({ length: 20 }, () => signIn({ tenantId })));
  const ended = signedIn.filter((_, index) => index % 3 === 0);
  await Promise.all(ended.map(({ sessionId }) => service.auth.revokeSession({ tenantId, sessionId })));
  const asked = Array.from({ length: 500 }, (_, index) => signedIn[(index * 7) % signedIn.length]!);
  const answers = await Promise.all(asked.map(({ accessToken }) => service.auth.verifyAccessToken({ accessToken })));
  for (const [index, { active, userId }] of answers.entries()) {
    const token = asked[index]!;
    expect({ active, userId }).toEqual({ active: !ended.includes(token), userId: active ? token.userId : "" });
  }
});

test("tokens live by the configuration, and one of another issuer's server is none", async () => {
  const service = await startService("grpc");
  const env = { JWT_ISSUER: "https://id.example.com", JWT_AUDIENCE: "shop", ACCESS_TOKEN_TTL: "90s" };
  const other = await launchService("grpc", { env, databaseUrl: service.databaseUrl });
  const { accessToken } = await (await signInBy(other))({ tenantId: await service.addTenant() });
  const { iss, aud, iat, exp } = decodeJwt(accessToken);
  expect({ iss, aud, life: exp! - iat! }).toEqual({ iss: "https://id.example.com", aud: "shop", life: 90 });
  expect((await other.as(service.rootToken).auth.verifyAccessToken({ accessToken })).active).toBe(true);
  await expectReason(service, accessToken, TokenReason.MALFORMED);
  await other.stop();
});
