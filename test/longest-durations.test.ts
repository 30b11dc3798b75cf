import { once } from "node:events";
import { setImmediate } from "node:timers/promises";
import { expect, onTestFinished, test, vi } from "vitest";
import { TIMER_MAX_MS } from "../src/config-values.ts";
import { environment } from "../src/environment.ts";
import { createDatabase } from "./support/database.ts";
import { openGrpc } from "./support/raw-grpc.ts";
import { serve } from "./support/serve.ts";

const LONGEST = `${TIMER_MAX_MS}ms`;
const durations = Object.entries(environment.shape).flatMap(([name, { safeParse }]) =>
  safeParse(LONGEST).data === TIMER_MAX_MS && name !== "SHUTDOWN_DELAY" ? [name] : [],
);

test("no limit that is as long as it may be becomes the shortest", async () => {
  const warnings: string[] = [];
  const listen = ({ name, stack = "" }: Error) => void warnings.push(`${name} ${stack}`);
  process.on("warning", listen);
  onTestFinished(() => void process.off("warning", listen));
  const database = await createDatabase();
  onTestFinished(() => database.drop());
  // At most a tenth is added to a connection's age, by chance; of exactly the longest grpc-js makes none at all.
  const random = vi.spyOn(Math, "random").mockReturnValue(0.999);
  onTestFinished(() => random.mockRestore());

  expect(durations.length).toBeGreaterThan(10);
  const longest = Object.fromEntries(durations.map((name) => [name, LONGEST]));
  const server = await serve(database.url, { ...longest, GRPC_CONNECTION_AGE: "24d" });
  const session = openGrpc(server);
  await once(session, "connect");
  // Answers once the server has taken the message in.
  expect((await fetch(`http://127.0.0.1:${server.httpPort}/metrics`)).status).toBe(200);
  session.close();
  await server.stop();
  await setImmediate();
  expect(warnings).toEqual([]);
});
