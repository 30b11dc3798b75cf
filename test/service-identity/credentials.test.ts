import { timestampMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { crc32 } from "node:zlib";
import { z } from "zod";
import { raceFor, startBoth } from "../support/both-transports.ts";
import { heldUp } from "../support/held-up.ts";
import { expectRefusal } from "../support/refusals.ts";
import { bearer } from "../support/rpcs.ts";
import { type SignedInService, startService, transports, uniqueKey } from "../support/service.ts";
import { actionsOf } from "../support/users.ts";

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

const timeRow = z.object({ time: z.number() });

const lockService = (serviceId: string) =>
  sql.unsafe`SELECT FROM services WHERE svc_id = ${serviceId}::uuid FOR NO KEY UPDATE`;

const selectClock = () => sql.type(timeRow)`SELECT clock_timestamp() AS time`;

/** As a rotation without overlap does. */
const endSecret = (secretId: string) => sql.type(timeRow)`
  UPDATE service_secrets SET revoked_utc = clock_timestamp() WHERE secret_id = ${secretId}::uuid
  RETURNING revoked_utc AS time`;

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

  test("a rotation has no gap: the old secret ends after the overlap, its sessions live on", async () => {
    const service = await startService(transport);
    const { services, addService } = service;
    const { serviceId, key, secret, secretId, ...mine } = await addService(["service.read"]);
    const rotated = await services.rotateServiceSecret({ serviceId, overlap: { seconds: 600n, nanos: 0 } });
    await services.authenticateService({ key, secret });
    await services.authenticateService({ key, secret: rotated.secret });
    const now = await services.rotateServiceSecret({ serviceId });
    for (const old of [secret, rotated.secret]) {
      await expectRefusal(services.authenticateService({ key, secret: old }), "SERVICE_CREDENTIALS_INVALID");
    }
    await services.authenticateService({ key, secret: now.secret });
    await mine.services.listServices({});
    const { secrets } = await services.listServiceSecrets({ serviceId });
    expect(secrets.map((one) => one.secretId)).toEqual([secretId, rotated.secretId, now.secretId]);
    expect(secrets.map(({ revokeTime }) => revokeTime !== undefined)).toEqual([true, true, false]);
    const week = { seconds: 7n * 86_400n, nanos: 1 };
    expect(
      (await expectRefusal(services.rotateServiceSecret({ serviceId, overlap: week }), "INVALID_REQUEST")).fields,
    ).toEqual(["overlap"]);
    expect(await actionsOf(service, serviceId)).toEqual([
      "service.secret.rotate",
      "service.secret.rotate",
      "service.register",
    ]);
  });

  test("no rotation lets a secret live on that was revoked, or is to end sooner", async () => {
    const { services, addService } = await startService(transport);
    const { serviceId, key, secret, secretId } = await addService([]);
    const { secretId: soonId } = await services.createServiceSecret({ serviceId });
    await services.revokeServiceSecret({ serviceId, secretId });
    await services.rotateServiceSecret({ serviceId, overlap: { seconds: 60n, nanos: 0 } });
    const endsOf = async () => {
      const { secrets } = await services.listServiceSecrets({ serviceId });
      return secrets.filter((one) => [secretId, soonId].includes(one.secretId)).map(({ revokeTime }) => revokeTime);
    };
    const before = await endsOf();
    await services.rotateServiceSecret({ serviceId, overlap: { seconds: 600n, nanos: 0 } });
    expect(await endsOf()).toEqual(before);
    await expectRefusal(services.authenticateService({ key, secret }), "SERVICE_CREDENTIALS_INVALID");
  });

  test("a secret that a rotation lets live on for a while is revoked at once", async () => {
    const { services, addService } = await startService(transport);
    const { serviceId, key, secret, secretId } = await addService([]);
    await services.rotateServiceSecret({ serviceId, overlap: { seconds: 600n, nanos: 0 } });
    await services.revokeServiceSecret({ serviceId, secretId });
    await expectRefusal(services.authenticateService({ key, secret }), "SERVICE_CREDENTIALS_INVALID");
  });

  test("a secret that a rotation has ended keeps when it did, also once it is revoked", async () => {
    const { services, addService } = await startService(transport);
    const { serviceId, secretId } = await addService([]);
    await services.rotateServiceSecret({ serviceId });
    const revokeTime = async () => {
      const { secrets } = await services.listServiceSecrets({ serviceId });
      return secrets.find((one) => one.secretId === secretId)?.revokeTime;
    };
    const ended = await revokeTime();
    expect(ended).toBeDefined();
    await services.revokeServiceSecret({ serviceId, secretId });
    expect(await revokeTime()).toEqual(ended);
  });

  test("an overlap is as long as it was asked for, however long the rotation waited for its service", async () => {
    const server = await startService(transport);
    const { serviceId, secretId } = await server.addService([]);
    let waitedUntil = Infinity;
    await heldUp(
      server,
      lockService(serviceId),
      () => server.services.rotateServiceSecret({ serviceId, overlap: { seconds: 60n, nanos: 0 } }),
      async (tx) => (waitedUntil = await tx.oneFirst(selectClock())),
    );
    const { secrets } = await server.services.listServiceSecrets({ serviceId });
    const { revokeTime } = secrets.find((one) => one.secretId === secretId)!;
    expect(timestampMs(revokeTime!)).toBeGreaterThanOrEqual(waitedUntil + 60_000);
  });

  test.each(["rotateServiceSecret", "revokeServiceSecret"] as const)(
    "%s leaves the time of an end that it waited for",
    async (rpc) => {
      const server = await startService(transport);
      const { serviceId, secretId } = await server.addService([]);
      let ended: number | null = null;
      await heldUp(
        server,
        lockService(serviceId),
        (): Promise<unknown> => server.services[rpc]({ serviceId, secretId }),
        async (tx) => (ended = await tx.oneFirst(endSecret(secretId))),
      );
      const { secrets } = await server.services.listServiceSecrets({ serviceId });
      const { revokeTime } = secrets.find((one) => one.secretId === secretId)!;
      expect(timestampMs(revokeTime!)).toBe(ended);
    },
  );

  test("revoking a secret ends the sessions that it opened, and no others", async () => {
    const service = await startService(transport);
    const { services, addService, as } = service;
    const { serviceId, key, secretId, ...mine } = await addService(["service.read"]);
    const second = await services.createServiceSecret({ serviceId });
    const { serviceToken } = await services.authenticateService({ key, secret: second.secret });
    // So that its token is remembered.
    await mine.services.listServices({});
    await services.revokeServiceSecret({ serviceId, secretId });
    await services.revokeServiceSecret({ serviceId, secretId });
    await expectRefusal(mine.services.listServices({}), "CALLER_TOKEN_INVALID");
    await as(serviceToken).services.listServices({});
    const unknown = services.revokeServiceSecret({ serviceId, secretId: crypto.randomUUID() });
    await expectRefusal(unknown, "SERVICE_SECRET_NOT_FOUND");
    const foreign = await addService([]);
    const other = services.revokeServiceSecret({ serviceId, secretId: foreign.secretId });
    await expectRefusal(other, "SERVICE_SECRET_NOT_FOUND");
    expect(await actionsOf(service, serviceId)).toEqual([
      "service.secret.revoke",
      "service.secret.create",
      "service.register",
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

test("no session survives a revocation that races its sign-in", async () => {
  const { services, addService, as } = await startBoth();
  const { services: bearing } = as(undefined);
  const race = async ({ serviceId, key, secret, secretId }: SignedInService, round: number) => {
    const signIn = () => services.authenticateService({ key, secret });
    const before = Array.from({ length: round % 5 }, signIn);
    const end =
      round % 2 === 0 ? services.revokeServiceSecret({ serviceId, secretId }) : services.disableService({ serviceId });
    const after = Array.from({ length: 5 - before.length }, signIn);
    const [ended, ...signIns] = await Promise.allSettled([end, ...before, ...after]);
    expect(ended.status).toBe("fulfilled");
    const { sessions } = await services.listServiceSessions({ serviceId });
    expect(sessions).toEqual([]);
    for (const signedIn of signIns) {
      if (signedIn.status === "fulfilled") {
        const headers = bearer(signedIn.value.serviceToken);
        await expectRefusal(bearing.listServices({}, { headers }), "CALLER_TOKEN_INVALID");
      }
    }
  };
  const racers = await Promise.all(Array.from({ length: 20 }, () => addService(["service.read"])));
  await raceFor(racers, 5, race);
});
