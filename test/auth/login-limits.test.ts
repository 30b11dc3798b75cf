import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { noOnes, someone } from "../support/logins.ts";
import { CHEAP_HASHES, OTHER_PASSWORD, PASSWORD } from "../support/passwords.ts";
import { expectRefusal, refused } from "../support/refusals.ts";
import { launchService } from "../support/service.ts";

describe("with real parameters", () => {
  test("a flood fills the queue, is told OVERLOADED, and neither delays others nor counts as tries", async () => {
    const env = { PASSWORD_HASH_THREADS: "1", PASSWORD_HASH_QUEUE: "20", THROTTLE_IDENTIFIER: "100" };
    const server = await launchService("grpc", { env });
    const { login, userId } = await someone(server);
    const flood = Array.from({ length: 60 }, () => server.auth.loginWithPassword({ ...login, password: PASSWORD }));
    let isOver = false;
    const settled = Promise.allSettled(flood).finally(() => (isOver = true));
    await Promise.all(Array.from({ length: 20 }, () => server.auth.getJwks({})));
    await server.auth.getUser({ tenantId: login.tenantId, key: { case: "userId", value: userId } });
    expect(isOver).toBe(false);
    const refusals = (await settled).flatMap((one) => (one.status === "rejected" ? [one.reason as Error] : []));
    expect(refusals.length).toBeGreaterThan(0);
    for (const error of refusals) await expectRefusal(Promise.reject(error), "OVERLOADED");
    await server.auth.loginWithPassword({ ...login, password: PASSWORD });
    const counted = await server.pool.any(sql.unsafe`SELECT throttle_key_hash FROM throttles WHERE hit_count > 0`);
    expect(counted).toEqual([]);
    await server.stop();
  });
});

describe("where tries are counted", () => {
  const from = (ip: string) => ({ client: { ip } });

  test("wrong passwords are refused after a while, right ones never count, and a known network is not shut out", async () => {
    const env = { ...CHEAP_HASHES, THROTTLE_IDENTIFIER_ADDRESS: "3", THROTTLE_IDENTIFIER: "5" };
    const server = await launchService("grpc", { env });
    const { login } = await someone(server);
    const right = { ...login, password: PASSWORD };
    const wrong = { ...login, password: OTHER_PASSWORD };
    const home = from("192.0.2.1");
    for (let n = 0; n < 10; n++) await server.auth.loginWithPassword({ ...right, ...home });
    for (let n = 0; n < 5; n++) {
      const away = from(`198.51.${100 + n}.1`);
      await expectRefusal(server.auth.loginWithPassword({ ...wrong, ...away }), "INVALID_CREDENTIALS");
    }
    await expectRefusal(server.auth.loginWithPassword({ ...right, ...from("203.0.113.1") }), "RATE_LIMITED");
    await server.auth.loginWithPassword({ ...right, ...from("192.0.2.200") });
    for (let n = 0; n < 3; n++) {
      await expectRefusal(server.auth.loginWithPassword({ ...wrong, ...home }), "INVALID_CREDENTIALS");
    }
    await expectRefusal(server.auth.loginWithPassword({ ...right, ...home }), "RATE_LIMITED");
    await server.stop();
  });

  test("those who are nobody are refused after as many tries as those who are somebody", async () => {
    const env = { ...CHEAP_HASHES, THROTTLE_IDENTIFIER_ADDRESS: "3" };
    const server = await launchService("grpc", { env });
    const request = { ...from("192.0.2.1"), password: OTHER_PASSWORD };
    for (const [who, login] of Object.entries(await noOnes(server))) {
      if (who === "erased") continue;
      const tries = [];
      for (let n = 0; n < 4; n++) {
        tries.push((await refused(server.auth.loginWithPassword({ ...login, ...request }))).reason);
      }
      expect(tries, who).toEqual([...Array<string>(3).fill("INVALID_CREDENTIALS"), "RATE_LIMITED"]);
    }
    await server.stop();
  });
});
