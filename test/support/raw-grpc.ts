import { once } from "node:events";
import { type ClientHttp2Session, type ClientSessionOptions, type IncomingHttpHeaders, connect } from "node:http2";
import { inject, onTestFinished } from "vitest";
import type { RunningServer } from "../../src/server.ts";
import { createRootedDatabase } from "./database.ts";
import { loggedLines } from "./logged-lines.ts";
import { onFileFinished } from "./per-file.ts";
import { serve } from "./serve.ts";
import { FIRST_CALL_MS, clientsOf } from "./service.ts";

export const PATHS = {
  LIST: "/org.v1.OrgService/ListTenants",
  AUDIT: "/org.v1.OrgService/ListAuditEvents",
  WATCH: "/org.v1.OrgService/WatchAuditEvents",
  AUTHENTICATE: "/service_identity.v1.ServiceIdentityService/AuthenticateService",
  CHECK: "/grpc.health.v1.Health/Check",
  HEALTH_WATCH: "/grpc.health.v1.Health/Watch",
  REFLECT: "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
} as const;

/** A server on a database of the file's own, which stops with the file. */
export const serveRaw = async (env: Readonly<Record<string, string>>) => {
  const database = await createRootedDatabase();
  const logged = loggedLines();
  const server = await serve(database.url, env, logged.log);
  onFileFinished(async () => {
    await server.stop();
    await database.drop();
  });
  return { database, logged, server };
};

/** A token of root that no server remembers, as a header has it. */
export const freshToken = async (server: Pick<RunningServer, "grpcPort" | "httpPort">): Promise<string> => {
  const { services } = clientsOf("grpc", server)({});
  const credentials = { key: "root", secret: inject("rootSecret") };
  const { serviceToken } = await services.authenticateService(credentials, { timeoutMs: FIRST_CALL_MS });
  return `Bearer ${serviceToken}`;
};

/** A connection to the native gRPC port, for a peer that no client library is. */
export const openGrpc = (
  { grpcPort }: Pick<RunningServer, "grpcPort">,
  options: ClientSessionOptions = {},
): ClientHttp2Session => {
  const session = connect(`http://127.0.0.1:${grpcPort}`, options);
  onTestFinished(() => session.destroy());
  return session;
};

/** Begins a call; answers with its stream, and with its status and code once it is closed. */
export const beginGrpc = (session: ClientHttp2Session, path: string, more: Readonly<Record<string, string>> = {}) => {
  const headers = { ":method": "POST", ":path": path, "content-type": "application/grpc", te: "trailers", ...more };
  const stream = session.request(headers);
  let answer: IncomingHttpHeaders = {};
  const keep = (some: IncomingHttpHeaders) => (answer = { ...answer, ...some });
  stream.on("response", keep).on("trailers", keep).resume();
  const answered = once(stream, "close").then(() => ({
    status: answer["grpc-status"],
    details: answer["grpc-status-details-bin"],
    requestId: answer["x-request-id"],
    rst: stream.rstCode,
  }));
  return { stream, answered };
};

/** Sends the bytes, and ends the stream only where that is asked for; answers with its status and code. */
export const sendGrpc = (
  session: ClientHttp2Session,
  path: string,
  bytes: Buffer,
  end: boolean,
  more: Readonly<Record<string, string>> = {},
) => {
  const { stream, answered } = beginGrpc(session, path, more);
  stream.write(bytes);
  if (end) stream.end();
  return answered;
};

/** What an answer's details say: the reason stands among them as it is. */
export const reasonIn = ({ details }: { readonly details: unknown }): string =>
  Buffer.from(String(details), "base64").toString("latin1");
