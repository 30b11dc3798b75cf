import { setImmediate } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { createLog } from "../../src/log.ts";
import { Call, type Waiting, waitingUntil } from "../../src/rpc/call.ts";
import { createPipeline } from "../../src/rpc/pipeline.ts";

/** A wait, and what ends it. */
type Start = () => { readonly waiting: Waiting; readonly end: () => void };

const starts: Readonly<Record<string, Start>> = {
  "a call": () => {
    const call = new Call("id", Infinity);
    return { waiting: call, end: () => call.end("CANCELLED") };
  },
  "a signal": () => {
    const controller = new AbortController();
    return { waiting: waitingUntil(controller.signal), end: () => controller.abort(new Error("gone")) };
  },
};

describe.each(Object.entries(starts))("%s", (_, start) => {
  test("tells its end once to who listens, and at once to who comes later, but not to who has left", () => {
    const { waiting, end } = start();
    const { signal } = waiting;
    const told: string[] = [];
    waiting.whenOver(() => told.push("stayed"));
    const leave = waiting.whenOver(() => told.push("left"));
    leave();
    expect(told).toEqual([]);
    end();
    end();
    expect(told).toEqual(["stayed"]);
    expect(signal.aborted).toBe(true);
    const leaveLate = waiting.whenOver((reason) =>
      told.push(reason === waiting.signal.reason ? "came later" : "wrong"),
    );
    leaveLate();
    expect(told).toEqual(["stayed", "came later"]);
  });
});

test("a call that was answered is not ended any more, and nobody is told of it", () => {
  const call = new Call("id", Infinity);
  const told: unknown[] = [];
  call.whenOver((reason) => told.push(reason));
  call.close();
  expect(call.end("CANCELLED")).toBe(false);
  expect({ told, aborted: call.signal.aborted, ended: call.ended }).toEqual({
    told: [],
    aborted: false,
    ended: undefined,
  });
});

test("a call that ends while its caller is looked up is not counted afterwards, among those under way or against them", async () => {
  const lookedUp = Promise.withResolvers<object>();
  const log = createLog("silent");
  const pipeline = createPipeline({
    tokens: { verify: () => lookedUp.promise } as never,
    verifyActor: () => Promise.resolve(undefined),
    log,
    callTimeoutMs: 60_000,
  });
  const header = (name: string) => (name === "authorization" ? "Bearer token" : undefined);
  const call = pipeline.receive(header, undefined);
  const method = { name: "held", log, rule: { case: "permission", value: "a.b" }, meter: () => undefined };
  const decode = () => Promise.withResolvers<never>().promise;
  const answer = pipeline.answer(method as never, call, { header, system: "grpc", decode, encode: () => "" });
  expect(pipeline.underWay()).toBe(1);
  call.end("CANCELLED");
  expect(await answer).toMatchObject({ failure: { reason: "CANCELLED" } });
  lookedUp.resolve({ permissions: ["*"] });
  await setImmediate();
  expect(pipeline.underWay()).toBe(0);
});
