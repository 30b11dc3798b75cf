import { setImmediate } from "node:timers/promises";
import { expect, onTestFinished, test } from "vitest";
import { createDatabase } from "../support/database.ts";
import { probe } from "../support/health-client.ts";
import { loggedLines } from "../support/logged-lines.ts";
import { serve } from "../support/serve.ts";

test("an event loop that is held up is not taken for a database that is away", async () => {
  const database = await createDatabase();
  const logged = loggedLines();
  const server = await serve(database.url, {}, logged.log);
  onTestFinished(async () => {
    await server.stop();
    await database.drop();
  });
  const held = new Int32Array(new SharedArrayBuffer(4));
  for (let second = 0; second < 5; second++) {
    await setImmediate();
    Atomics.wait(held, 0, 0, 1_100);
    expect(server.readiness()).toBe("ready");
  }
  expect(await probe(server.grpcPort, "readiness")).toBe("SERVING");
  expect(logged.all.flatMap(({ readiness }) => readiness ?? [])).toEqual(["ready"]);
});
