import { status } from "@grpc/grpc-js";
import { afterEach, expect, test, vi } from "vitest";
import { CALL, CLIENT, ERROR, SERVER, call, ok, plain, startCollector, started } from "./support/trace-collector.ts";

afterEach(() => void vi.unstubAllEnvs());

test.each([
  [status.NOT_FOUND, undefined],
  [status.PERMISSION_DENIED, undefined],
  [status.RESOURCE_EXHAUSTED, undefined],
  [status.UNKNOWN, ERROR],
  [status.DEADLINE_EXCEEDED, ERROR],
  [status.UNIMPLEMENTED, ERROR],
  [status.INTERNAL, ERROR],
  [status.UNAVAILABLE, ERROR],
  [status.DATA_LOSS, ERROR],
])("a call answered with code %i has its name, and is an error where the fault is ours", async (code, expected) => {
  const collector = await startCollector();
  const tracing = await started();
  await tracing.run(
    { ...call(), system: "connectrpc" },
    async () => code,
    (answer) => answer,
  );
  await tracing.shutdown();

  const [span] = collector.spans();
  expect(span!.status.code || undefined).toBe(expected);
  expect(plain(span!.attributes)).toEqual({
    "rpc.system.name": "connectrpc",
    "rpc.method": CALL,
    "rpc.status_code": status[code],
    ...(expected && { "error.type": status[code] }),
  });
});

test("a statement that fails tells its SQLSTATE, never its message, and the error goes on", async () => {
  const collector = await startCollector();
  const tracing = await started();
  const cause = Object.assign(new Error("duplicate key: ann@example.com"), { code: "23505" });
  const error = new Error("Query failed for ann@example.com", { cause });
  const failing = () => tracing.database("insertUser", () => Promise.reject(error));
  await expect(tracing.run(call(), failing, ok)).rejects.toBe(error);
  await tracing.shutdown();

  const statement = collector.spans().find(({ kind }) => kind === CLIENT)!;
  expect(statement.status).toEqual({ code: ERROR });
  expect(plain(statement.attributes)).toMatchObject({ "error.type": "23505", "db.response.status_code": "23505" });
  const server = collector.spans().find(({ kind }) => kind === SERVER)!;
  expect(plain(server.attributes)).toMatchObject({ "rpc.status_code": "INTERNAL" });
  expect(String(collector.received[0]!.body)).not.toContain("ann@");
});

test.each([
  [new TypeError("of ann@example.com"), "TypeError"],
  ["ann@example.com", "string"],
])("a statement that fails without a SQLSTATE, by %o, tells its kind alone", async (thrown, kind) => {
  const collector = await startCollector();
  const tracing = await started();
  const failing = () => tracing.database("insertUser", () => Promise.reject(thrown as Error));
  await expect(tracing.run(call(), failing, ok)).rejects.toBe(thrown);
  await tracing.shutdown();

  const statement = collector.spans().find(({ kind }) => kind === CLIENT)!;
  expect(plain(statement.attributes)).toEqual({
    "db.system.name": "postgresql",
    "db.query.summary": "insertUser",
    "error.type": kind,
  });
});
