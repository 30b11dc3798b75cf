import { getEventListeners } from "node:events";
import fc from "fast-check";
import { expect, test } from "vitest";
import { createCoalescer } from "../../src/db/coalesce.ts";
import { Call, detached, waitingUntil } from "../../src/rpc/call.ts";

/** A load that ends when the test says so, and the batches that it was sent. */
const heldLoad = () => {
  const batches: { readonly keys: readonly number[]; readonly end: PromiseWithResolvers<readonly string[]> }[] = [];
  const load = (keys: readonly number[]) => {
    const end = Promise.withResolvers<readonly string[]>();
    batches.push({ keys, end });
    return end.promise;
  };
  const answer = (index: number) => {
    const { keys, end } = batches[index]!;
    end.resolve(keys.map((key) => `value ${key}`));
  };
  return { load, batches, answer, keys: () => batches.map(({ keys }) => keys) };
};

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Whatever can be sent has been: an answer frees a place in one turn, and it is taken in the next. */
const settled = async (): Promise<void> => {
  await turn();
  await turn();
};

test("who comes alone leaves with his turn of the event loop", async () => {
  const { load, keys } = heldLoad();
  void createCoalescer(load)(detached(), 1);
  await turn();
  expect(keys()).toEqual([[1]]);
});

test("those who come in one turn go as one", async () => {
  const { load, keys, answer } = heldLoad();
  const ask = createCoalescer(load);
  const answers = [1, 2].map((key) => ask(detached(), key));
  // Whoever was told of something in this turn comes after those who told it.
  for (let told = 0; told < 10; told++) await Promise.resolve();
  answers.push(ask(detached(), 3));
  await turn();
  expect(keys()).toEqual([[1, 2, 3]]);
  answer(0);
  expect(await Promise.all(answers)).toEqual(["value 1", "value 2", "value 3"]);
});

test("what comes while loads are under way goes as one, in its order, once one of them has ended", async () => {
  const { load, keys, answer } = heldLoad();
  const ask = createCoalescer(load, { underWayMax: 2 });
  const answers = [];
  for (const key of [1, 2, 3, 4, 3]) {
    answers.push(ask(detached(), key));
    await settled();
  }
  expect(keys()).toEqual([[1], [2]]);
  answer(1);
  await settled();
  expect(keys()).toEqual([[1], [2], [3, 4, 3]]);
  answer(2);
  answer(0);
  expect(await Promise.all(answers)).toEqual([1, 2, 3, 4, 3].map((key) => `value ${key}`));
});

test("nobody joins a load that has been sent, even for the same key", async () => {
  const { load, keys, answer } = heldLoad();
  const ask = createCoalescer(load, { underWayMax: 1 });
  void ask(detached(), 7);
  await settled();
  const second = ask(detached(), 7);
  await settled();
  expect(keys()).toEqual([[7]]);
  answer(0);
  await settled();
  expect(keys()).toEqual([[7], [7]]);
  answer(1);
  expect(await second).toBe("value 7");
});

test("a load has no more keys than it may", async () => {
  const { load, keys, answer } = heldLoad();
  const ask = createCoalescer(load, { underWayMax: 1, batchMax: 2 });
  const answers = [1, 2, 3, 4, 5].map((key) => ask(detached(), key));
  await settled();
  for (const index of [0, 1, 2]) {
    answer(index);
    await settled();
  }
  expect(keys()).toEqual([[1, 2], [3, 4], [5]]);
  expect(await Promise.all(answers)).toHaveLength(5);
});

test("as many loads as may be under way are sent at once, where one would have too many keys", async () => {
  const { load, keys, answer } = heldLoad();
  const ask = createCoalescer(load, { underWayMax: 2, batchMax: 2 });
  const answers = [1, 2, 3, 4, 5].map((key) => ask(detached(), key));
  await turn();
  expect(keys()).toEqual([
    [1, 2],
    [3, 4],
  ]);
  answer(0);
  await settled();
  answer(1);
  answer(2);
  expect(await Promise.all(answers)).toHaveLength(5);
});

test("a load that fails fails everybody in it, and nobody else", async () => {
  const { load, batches, answer } = heldLoad();
  const ask = createCoalescer(load, { underWayMax: 1 });
  const first = ask(detached(), 1);
  await settled();
  const others = [2, 3].map((key) => ask(detached(), key));
  answer(0);
  await settled();
  batches[1]!.end.reject(new Error("away"));
  expect(await Promise.allSettled([first, ...others])).toMatchObject([
    { status: "fulfilled" },
    { reason: { message: "away" } },
    { reason: { message: "away" } },
  ]);
  const next = ask(detached(), 4);
  await settled();
  answer(2);
  expect(await next).toBe("value 4");
});

test("a load that throws at once, or answers too few values, is an error and no silence", async () => {
  const throwing = createCoalescer<number, string>(() => {
    throw new Error("at once");
  });
  await expect(throwing(detached(), 1)).rejects.toThrow("at once");
  const short = createCoalescer<number, string>(() => Promise.resolve([]));
  await expect(short(detached(), 1)).rejects.toThrow("another number");
});

test("who gives up ends his own wait alone, and is not asked for any more where he was not sent", async () => {
  const { load, keys, answer } = heldLoad();
  const ask = createCoalescer(load, { underWayMax: 1 });
  const calls = [1, 2, 3].map(() => new Call("id", 60_000));
  const sent = ask(calls[0]!, 0);
  await settled();
  const answers = Promise.allSettled([sent, ask(calls[1]!, 1), ask(calls[2]!, 2)]);
  calls[0]!.end("CANCELLED");
  calls[1]!.end("DEADLINE");
  await settled();
  expect(keys()).toEqual([[0]]);
  answer(0);
  await settled();
  expect(keys()).toEqual([[0], [2]]);
  answer(1);
  expect(await answers).toMatchObject([
    { reason: { reason: "CANCELLED" } },
    { reason: { reason: "DEADLINE" } },
    { value: "value 2" },
  ]);
  await expect(ask(calls[0]!, 9)).rejects.toMatchObject({ reason: "CANCELLED" });
  await settled();
  expect(keys()).toEqual([[0], [2]]);
  calls.forEach((call) => call.close());
});

test("who was answered leaves no listener with his call", async () => {
  const { load, answer } = heldLoad();
  const { signal } = new AbortController();
  const asked = createCoalescer(load)(waitingUntil(signal), 1);
  await turn();
  expect(getEventListeners(signal, "abort")).toHaveLength(1);
  answer(0);
  await asked;
  expect(getEventListeners(signal, "abort")).toEqual([]);
});

test("whatever comes when, each gets its own value, from a load sent after it came", async () => {
  const plan = fc.array(fc.record({ key: fc.nat(9), pause: fc.nat(3), cancelled: fc.boolean() }), { maxLength: 60 });
  await fc.assert(
    fc.asyncProperty(
      plan,
      fc.integer({ min: 1, max: 3 }),
      fc.integer({ min: 1, max: 4 }),
      async (asks, max, batchMax) => {
        let clock = 0;
        let underWay = 0;
        const ask = createCoalescer(
          async (keys: readonly number[]) => {
            const sentAt = ++clock;
            expect(++underWay).toBeLessThanOrEqual(max);
            expect(keys.length).toBeLessThanOrEqual(batchMax);
            await turn();
            underWay--;
            return keys.map((key) => ({ key, sentAt }));
          },
          { underWayMax: max, batchMax },
        );
        const waits = [];
        for (const { key, pause, cancelled } of asks) {
          const askedAt = ++clock;
          const call = new Call("id", 60_000);
          const wait = ask(call, key).then(
            (value) => expect(value.key === key && value.sentAt > askedAt).toBe(true),
            (error: unknown) => expect(cancelled && error).toMatchObject({ reason: "CANCELLED" }),
          );
          waits.push(wait.finally(() => call.close()));
          if (cancelled) call.end("CANCELLED");
          for (let waited = 0; waited < pause; waited++) await turn();
        }
        await Promise.all(waits);
      },
    ),
    { numRuns: 50 },
  );
});
