import { EventEmitter } from "node:events";
import { expect, test } from "vitest";
import { shareWorkers } from "../../src/delivery/shares.ts";

test("who looks for others' messages keeps nobody from the next of a provider", () => {
  const events = new EventEmitter();
  const full = shareWorkers(events, 2);
  const [first, second] = [{ worker: {} }, { worker: {} }];
  const email = { job: { flags: { email: true } } };

  expect(full()).toEqual([]);
  events.emit("worker:getJob:start", first);
  events.emit("job:start", { ...first, ...email });
  expect(full()).toEqual(["email"]);
  events.emit("worker:getJob:start", second);
  // The first is done and looks again, while the second still looks.
  events.emit("job:complete", { ...first, ...email });
  expect(full()).toEqual(["phone"]);
  events.emit("worker:getJob:start", first);
  events.emit("worker:getJob:empty", second);
  events.emit("worker:getJob:empty", first);
  expect(full()).toEqual([]);
});
