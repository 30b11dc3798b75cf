import { once } from "node:events";
import { type ClientHttp2Session, type IncomingHttpHeaders, connect } from "node:http2";
import { onTestFinished } from "vitest";
import type { RunningServer } from "../../src/server.ts";

/** A connection to the native gRPC port, for a peer that no client library is. */
export const openGrpc = ({ grpcPort }: RunningServer): ClientHttp2Session => {
  const session = connect(`http://127.0.0.1:${grpcPort}`);
  onTestFinished(() => session.destroy());
  return session;
};

/** Sends the bytes, and ends the stream only where that is asked for; answers with its status and code. */
export const sendGrpc = async (
  session: ClientHttp2Session,
  path: string,
  bytes: Buffer,
  end: boolean,
  more: Readonly<Record<string, string>> = {},
) => {
  const headers = { ":method": "POST", ":path": path, "content-type": "application/grpc", te: "trailers", ...more };
  const stream = session.request(headers);
  const closed = once(stream, "close");
  let answer: IncomingHttpHeaders = {};
  const keep = (some: IncomingHttpHeaders) => (answer = { ...answer, ...some });
  stream.on("response", keep).on("trailers", keep).resume();
  stream.write(bytes);
  if (end) stream.end();
  await closed;
  return {
    status: answer["grpc-status"],
    details: answer["grpc-status-details-bin"],
    requestId: answer["x-request-id"],
    rst: stream.rstCode,
  };
};
