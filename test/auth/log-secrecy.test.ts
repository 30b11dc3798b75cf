import { type Message, toBinary } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import fc from "fast-check";
import { sql } from "slonik";
import { expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import { AuthService } from "../../src/gen/auth/v1/auth_pb.ts";
import { createLog } from "../../src/log.ts";
import { startGoogleIssuer } from "../support/google-issuer.ts";
import { type Known, sampleMessages, wildMessage } from "../support/messages.ts";
import { CHEAP_HASHES } from "../support/passwords.ts";
import { plantAuth } from "../support/planted-auth.ts";
import { rawConnect, rawGrpc } from "../support/raw-calls.ts";
import { bearer, rpcs } from "../support/rpcs.ts";
import { type TestService, launchService } from "../support/service.ts";

const FIELDS = [
  ...["password", "current_password", "new_password", "code", "email", "phone", "destination"],
  ...["refresh_token", "access_token", "id_token"],
];
const RUNS = 5;

const textRow = z.object({ text: z.string() });

/** What else is kept: the events' payloads, the jobs and their errors. */
const kept = ({ pool }: TestService) =>
  pool.any(sql.type(textRow)`
    SELECT a.payload_json::text AS text FROM audit_events a
    UNION ALL SELECT j.payload::text || coalesce(j.last_error, '') FROM graphile_worker._private_jobs j`);

test("no password, code, contact or token that Auth is sent stands in the log, an error, an event or a job", async () => {
  const written: string[] = [];
  const issuer = await startGoogleIssuer();
  const log = createLog("trace", { write: (line) => void written.push(line) });
  // The folder that messages would be written into cannot be made: each is tried, and its failure logged.
  const limits = { OTP_REQUEST_INTERVAL: "0s", OTP_REQUESTS_PER_HOUR: "1000", DATA_DIR: "/dev/null" };
  const server = await launchService("grpc", { env: { ...issuer.env, ...CHEAP_HASHES, ...limits }, log });
  const callers = [rawGrpc(server), rawConnect(server)];
  onTestFinished(async () => {
    for (const caller of callers) caller.close();
    await server.stop();
    await issuer.close();
  });
  const tenantId = await server.addTenant();
  const known: Known = { ...(await plantAuth(server, issuer, tenantId)), tenant_id: [tenantId] };
  // Six digits alone may stand in any number of a log: as a code, they stand alone.
  const secrets = FIELDS.flatMap((field) => known[field] ?? []).filter((text) => text !== "password");

  const succeeded = new Set<string>();
  const send = async (name: string, message: Message) => {
    const { method } = rpcs.find((rpc) => rpc.name === name && rpc.method.parent === AuthService)!;
    for (const caller of callers) {
      const { code, text, details } = await caller.call(
        method,
        toBinary(method.input, message),
        bearer(server.rootToken),
      );
      expect(code, text).not.toBe(Code.Internal);
      if (code === 0) succeeded.add(name);
      written.push(text, ...details.map(({ value }) => Buffer.from(value).toString("latin1")));
    }
  };
  for (const { name, input } of AuthService.methods) {
    const requests = [...sampleMessages(input, known), ...fc.sample(wildMessage(input, known), { numRuns: RUNS })];
    for (const request of requests) await send(name, request);
  }
  expect(succeeded.size).toBeGreaterThan(15);

  const all = [...written, ...(await kept(server)).map(({ text }) => text)].join("\n");
  expect(all.length).toBeGreaterThan(50_000);
  const stands = (secret: string) =>
    /^\d{6}$/.test(secret) ? new RegExp(`(?<![\\w.-])${secret}(?![\\w-])`).test(all) : all.includes(secret);
  expect(secrets.length).toBeGreaterThan(100);
  expect(secrets.filter(stands)).toEqual([]);
});
