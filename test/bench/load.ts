import { once } from "node:events";
import { type ClientHttp2Session, type IncomingHttpHeaders, type OutgoingHttpHeaders, connect } from "node:http2";
import { frame } from "../support/frames.ts";

/** What a load process is told, once. */
export interface LoadOrder {
  readonly origin: string;
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  /** The request messages in base64, without their gRPC frames: sent in turn. */
  readonly messages: readonly string[];
  readonly connections: number;
  readonly concurrency: number;
  readonly seconds: number;
}

/** What it answers, once. */
export interface LoadReport {
  readonly calls: number;
  readonly failures: number;
  readonly perSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

/** One unary call on raw HTTP/2: a client library would cost more than the server that is measured. */
const callOnce = async (session: ClientHttp2Session, headers: OutgoingHttpHeaders, body: Buffer): Promise<boolean> => {
  const stream = session.request(headers);
  let status: unknown;
  stream.on("response", (response: IncomingHttpHeaders) => (status = response["grpc-status"]));
  stream.on("trailers", (trailers: IncomingHttpHeaders) => (status = trailers["grpc-status"]));
  stream.resume();
  stream.end(body);
  await once(stream, "close");
  return status === "0";
};

const percentile = (sorted: readonly number[], share: number) => sorted[Math.floor((sorted.length - 1) * share)] ?? 0;

/** Keeps `concurrency` calls under way for some seconds; the first tenth warms up and is not counted. */
const run = async (order: LoadOrder): Promise<LoadReport> => {
  const sessions = Array.from({ length: order.connections }, () => connect(order.origin));
  const bodies = order.messages.map((message) => frame(Buffer.from(message, "base64")));
  const headers = {
    ":method": "POST",
    ":path": order.path,
    "content-type": "application/grpc",
    te: "trailers",
    ...order.headers,
  };
  const started = performance.now();
  const countFrom = started + order.seconds * 100;
  const end = started + order.seconds * 1_000;
  const latencies: number[] = [];
  let failures = 0;
  let sent = 0;
  const worker = async (session: ClientHttp2Session) => {
    for (let now = performance.now(); now < end;) {
      const ok = await callOnce(session, headers, bodies[sent++ % bodies.length] as Buffer);
      const done = performance.now();
      if (done > countFrom) {
        latencies.push(done - now);
        if (!ok) failures++;
      }
      now = done;
    }
  };
  const workers = Array.from({ length: order.concurrency }, (_, index) =>
    worker(sessions[index % sessions.length] as ClientHttp2Session),
  );
  await Promise.all(workers);
  for (const session of sessions) session.close();
  const sorted = latencies.sort((a, b) => a - b);
  return {
    calls: latencies.length,
    failures,
    perSecond: (latencies.length * 1_000) / (performance.now() - countFrom),
    p50Ms: percentile(sorted, 0.5),
    p99Ms: percentile(sorted, 0.99),
  };
};

process.once("message", (order: LoadOrder) => {
  void run(order).then((report) => {
    process.send?.(report, () => process.disconnect());
  });
});
