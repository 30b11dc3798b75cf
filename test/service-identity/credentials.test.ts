import { timestampMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { crc32 } from "node:zlib";
import { expectRefusal } from "../support/refusals.ts";
import { startService, transports, uniqueKey } from "../support/service.ts";

/** Another random part under a right checksum: only the comparison with the stored hash can refuse it. */
const forged = (credential: string): string => {
  const [kind, id, random] = credential.split("_") as [string, string, string];
  const body = `${kind}_${id}_${random.slice(1)}${random.slice(0, 1)}`;
  return `${body}_${crc32(body).toString(16).padStart(8, "0")}`;
};

const unknownId = (credential: string): string => {
  const [kind, , random] = credential.split("_") as [string, string, string];
  const body = `${kind}_${crypto.randomUUID()}_${random}`;
  return `${body}_${crc32(body).toString(16).padStart(8, "0")}`;
};

describe.each(transports)("%s: secrets and tokens", (transport) => {
  test("every wrong key or secret gets the one answer", async () => {
    const { services, addService } = await startService(transport);
    const { key, secret, token } = await addService([]);
    const other = await addService([]);
    const wrong = [
      { key, secret: forged(secret) },
      { key, secret: unknownId(secret) },
      { key, secret: other.secret },
      { key: other.key, secret },
      { key: uniqueKey(), secret },
      { key, secret: "x" },
      { key, secret: token },
      { key, secret: `${secret.slice(0, -1)}${secret.endsWith("0") ? "1" : "0"}` },
    ];
    for (const attempt of wrong) {
      const { metadata } = await expectRefusal(services.authenticateService(attempt), "SERVICE_CREDENTIALS_INVALID");
      expect(Object.keys(metadata)).toEqual(["request_id"]);
    }
  });

  test("a token lives an hour, or as long as asked for up to a day", async () => {
    const { services, addService } = await startService(transport);
    const { key, secret } = await addService([]);
    const lifeOf = async (seconds?: bigint) => {
      const ttl = seconds === undefined ? {} : { ttl: { seconds, nanos: 0 } };
      const { expireTime } = await services.authenticateService({ key, secret, ...ttl });
      return Number(expireTime?.seconds) - Date.now() / 1_000;
    };
    expect(await lifeOf()).toBeCloseTo(3_600, -1);
    expect(await lifeOf(86_400n)).toBeCloseTo(86_400, -1);
    for (const seconds of [86_401n, 0n, -1n]) {
      expect((await expectRefusal(lifeOf(seconds), "INVALID_REQUEST")).fields).toEqual(["ttl"]);
    }
  });

  test("a life below a millisecond is one, so that none ends before it begins", async () => {
    const { services, addService } = await startService(transport);
    const { serviceId, key, secret } = await addService([]);
    await services.authenticateService({ key, secret, ttl: { seconds: 0n, nanos: 1 } });
    const { sessions } = await services.listServiceSessions({ serviceId, includeEnded: true });
    for (const { createTime, expireTime } of sessions)
      expect(timestampMs(expireTime!)).toBeGreaterThan(timestampMs(createTime!));
  });

  test("a token ends with its time, by the database's clock", async () => {
    const { services, addService, as, pool } = await startService(transport);
    const { serviceId, key, secret } = await addService(["service.read"]);
    const { serviceToken } = await services.authenticateService({ key, secret });
    const mine = as(serviceToken);
    await mine.services.listServices({});
    await pool.query(sql.unsafe`UPDATE service_sessions SET expiry_utc = now() WHERE svc_id = ${serviceId}::uuid`);
    await expect
      .poll(
        () =>
          mine.services.listServices({}).then(
            () => "answered",
            () => "refused",
          ),
        { interval: 20 },
      )
      .toBe("refused");
    await expectRefusal(mine.services.listServices({}), "CALLER_TOKEN_INVALID");
  });

  test("a narrower token may do less; more than the service has is refused", async () => {
    const { services, addService, as } = await startService(transport);
    const { key, secret } = await addService(["service.*", "org.tenant.read"]);
    const narrow = await services.authenticateService({ key, secret, permissions: ["service.read"] });
    expect(narrow.permissions).toEqual(["service.read"]);
    const mine = as(narrow.serviceToken);
    await mine.services.listServices({});
    await expectRefusal(mine.org.listTenants({}), "PERMISSION_MISSING");
    const more = services.authenticateService({ key, secret, permissions: ["org.tenant.write"] });
    await expectRefusal(more, "PERMISSION_ESCALATION");
    const handOut = as(narrow.serviceToken).services.createServiceSecret({ serviceId: crypto.randomUUID() });
    await expectRefusal(handOut, "PERMISSION_MISSING");
  });

  test.each([
    { asked: [], told: ["auth.*", "org.*"] },
    { asked: ["org.node.*", "org.node.read", "auth.login"], told: ["auth.login", "org.node.*"] },
  ])("what a token may do is told alike by who makes it and who verifies it: $asked", async ({ asked, told }) => {
    const { services, addService } = await startService(transport);
    const { key, secret } = await addService(["org.*", "org.node.read", "auth.*"]);
    const { serviceToken, permissions } = await services.authenticateService({ key, secret, permissions: asked });
    expect(permissions).toEqual(told);
    expect((await services.verifyServiceToken({ serviceToken })).permissions).toEqual(told);
  });

  test("a narrower token does not win back by its own service what it was narrowed by", async () => {
    const { services, addService, as } = await startService(transport);
    const { key, secret, serviceId } = await addService(["service.*", "org.tenant.read"]);
    const { serviceToken } = await services.authenticateService({ key, secret, permissions: ["service.write"] });
    const narrow = as(serviceToken).services;
    await expectRefusal(narrow.createServiceSecret({ serviceId }), "PERMISSION_ESCALATION");
    await expectRefusal(narrow.rotateServiceSecret({ serviceId }), "PERMISSION_ESCALATION");
    const register = narrow.registerService({ key: uniqueKey(), label: "X", permissions: ["org.tenant.read"] });
    await expectRefusal(register, "PERMISSION_ESCALATION");
  });

  test("a lost permission takes hold at once, a gained one too where the token is not narrowed", async () => {
    const { services, addService, as } = await startService(transport);
    const { serviceId, key, secret, ...mine } = await addService(["service.read", "org.tenant.read"]);
    await mine.org.listTenants({});
    const narrow = await services.authenticateService({ key, secret, permissions: ["service.read"] });
    await services.revokeServicePermissions({ serviceId, permissions: ["org.tenant.read", "auth.login"] });
    await expectRefusal(mine.org.listTenants({}), "PERMISSION_MISSING");
    const { service } = await services.grantServicePermissions({
      serviceId,
      permissions: ["service.read", "org.audit.read"],
    });
    expect(service?.permissions).toEqual(["org.audit.read", "service.read"]);
    await mine.org.listAuditEvents({});
    await expectRefusal(as(narrow.serviceToken).org.listAuditEvents({}), "PERMISSION_MISSING");
    expect((await services.authenticateService({ key, secret })).permissions).toEqual([
      "org.audit.read",
      "service.read",
    ]);
  });

  test("a use is noted at most once a minute, and never the secret itself", async () => {
    const { services, addService } = await startService(transport);
    const { serviceId, key, secret } = await addService([]);
    const usedAt = async () => (await services.listServiceSecrets({ serviceId })).secrets[0]?.lastUsedTime;
    const first = await usedAt();
    expect(first).toBeDefined();
    await Promise.all(Array.from({ length: 20 }, () => services.authenticateService({ key, secret })));
    expect(await usedAt()).toEqual(first);
  });
});
