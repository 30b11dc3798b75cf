import { timestampMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { raceFor, startBoth } from "../support/both-transports.ts";
import { heldUp } from "../support/held-up.ts";
import { expectRefusal } from "../support/refusals.ts";
import { bearer } from "../support/rpcs.ts";
import { type SignedInService, startService, transports } from "../support/service.ts";
import { actionsOf } from "../support/users.ts";

const timeRow = z.object({ time: z.number() });

const lockService = (serviceId: string) =>
  sql.unsafe`SELECT FROM services WHERE svc_id = ${serviceId}::uuid FOR NO KEY UPDATE`;

const selectClock = () => sql.type(timeRow)`SELECT clock_timestamp() AS time`;

/** As a rotation without overlap does. */
const endSecret = (secretId: string) => sql.type(timeRow)`
  UPDATE service_secrets SET revoked_utc = clock_timestamp() WHERE secret_id = ${secretId}::uuid
  RETURNING revoked_utc AS time`;

describe.each(transports)("%s", (transport) => {
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

  test.each([
    ["writes no event where a rotation has ended it and what it opened", false, 0],
    ["writes one where a rotation has ended it and a session of it lives on", true, 1],
  ])("revoking a secret %s", async (_, livesOn, revoked) => {
    const service = await startService(transport);
    const { services, addService } = service;
    const { serviceId, secretId, token } = await addService([]);
    await services.rotateServiceSecret({ serviceId });
    if (!livesOn) await services.revokeServiceSession({ selector: { case: "serviceToken", value: token } });
    await services.revokeServiceSecret({ serviceId, secretId });
    await services.revokeServiceSecret({ serviceId, secretId });
    const actions = await actionsOf(service, serviceId);
    expect(actions.filter((action) => action === "service.secret.revoke")).toHaveLength(revoked);
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
