import { expect, test } from "vitest";
import { changedMeanwhile, lookAgain } from "../../src/db/looks.ts";

test("who looks is told CONFLICT where somebody else wrote during each of three looks", async () => {
  let looks = 0;
  const found = await lookAgain(() => {
    looks++;
    return Promise.resolve(changedMeanwhile);
  });
  expect(found).toMatchObject({ reason: "CONFLICT" });
  expect(looks).toBe(3);
});

test("what the last look finds counts", async () => {
  let looks = 0;
  const found = await lookAgain(() => Promise.resolve(++looks < 3 ? changedMeanwhile : { looks }));
  expect(found).toEqual({ looks: 3 });
});
