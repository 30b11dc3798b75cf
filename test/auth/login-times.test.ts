import { describe, expect, test } from "vitest";
import { noOnes } from "../support/logins.ts";
import { OTHER_PASSWORD } from "../support/passwords.ts";
import { expectRefusal } from "../support/refusals.ts";
import { launchService } from "../support/service.ts";

describe("with real parameters", () => {
  test("each of those who get one answer takes the work of one hash", async () => {
    const server = await launchService("grpc", { env: { THROTTLES: "off" } });
    const logins = Object.entries(await noOnes(server));
    const work = new Map<string, number[]>(logins.map(([who]) => [who, []]));
    // Processor time, not the clock: a busy machine does not change it. In turn, so that nothing else does.
    for (let round = 0; round < 9; round++) {
      for (const [who, login] of logins) {
        const before = process.cpuUsage();
        await expectRefusal(
          server.auth.loginWithPassword({ ...login, password: OTHER_PASSWORD }),
          "INVALID_CREDENTIALS",
        );
        const { user, system } = process.cpuUsage(before);
        work.get(who)!.push(user + system);
      }
    }
    const median = (values: readonly number[]) => [...values].sort((a, b) => a - b)[values.length >> 1]!;
    const known = median(work.get("known")!);
    for (const [who, values] of work) {
      const ratio = median(values) / known;
      expect(ratio, who).toBeGreaterThan(0.6);
      expect(ratio, who).toBeLessThan(1.5);
    }
    await server.stop();
  });
});
