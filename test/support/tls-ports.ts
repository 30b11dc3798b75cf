import { once } from "node:events";
import http2 from "node:http2";
import tls from "node:tls";
import { Client, credentials, Server } from "@grpc/grpc-js";
import { onTestFinished } from "vitest";
import type { Certificates } from "../../src/rpc/tls.ts";
import type { Identity } from "./certificates.ts";

type Connection = { call(): Promise<string> };
export type Port = { port: number; connect(trusted: Identity, identity?: Identity): Connection };

const bytes = (value: Buffer) => value;
const ping = {
  path: "/test.Ping/Ping",
  requestStream: false,
  responseStream: false,
  requestSerialize: bytes,
  requestDeserialize: bytes,
  responseSerialize: bytes,
  responseDeserialize: bytes,
} as const;

export async function grpcPort(certificates: Certificates): Promise<Port> {
  const server = new Server();
  server.addService(
    { ping },
    { ping: (_call: unknown, done: (error: null, value: Buffer) => void) => done(null, Buffer.from("pong")) },
  );
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync("localhost:0", certificates.grpcCredentials(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    ),
  );
  onTestFinished(() => server.forceShutdown());
  return {
    port,
    connect(trusted, identity) {
      const pem = (text: string | undefined) => (text === undefined ? null : Buffer.from(text));
      const channel = credentials.createSsl(Buffer.from(trusted.cert), pem(identity?.key), pem(identity?.cert));
      // The global pool would hand a new client the open connection of an earlier one.
      const client = new Client(`localhost:${port}`, channel, { "grpc.use_local_subchannel_pool": 1 });
      onTestFinished(() => client.close());
      return {
        call: () =>
          new Promise((resolve, reject) => {
            const answer = (error: Error | null, value?: Buffer) => (error ? reject(error) : resolve(String(value)));
            client.makeUnaryRequest(
              ping.path,
              bytes,
              bytes,
              Buffer.from("ping"),
              { deadline: Date.now() + 5_000 },
              answer,
            );
          }),
      };
    },
  };
}

export async function httpPort(certificates: Certificates): Promise<Port> {
  const server = http2.createSecureServer(certificates.secureServerOptions(), (_request, response) =>
    response.end("pong"),
  );
  certificates.onChange((context) => server.setSecureContext(context));
  server.listen(0, "localhost");
  await once(server, "listening");
  onTestFinished(() => void server.close());
  const address = server.address();
  const port = typeof address === "object" && address ? address.port : 0;
  return {
    port,
    connect(trusted, identity) {
      const session = http2.connect(`https://localhost:${port}`, { ca: trusted.cert, ...identity });
      const errors: Error[] = [];
      session.on("error", (error: Error) => errors.push(error));
      onTestFinished(() => session.destroy());
      return {
        async call() {
          for (const error of errors) throw error;
          const stream = session.request({ ":path": "/" });
          let body = "";
          for await (const chunk of stream.setEncoding("utf8")) body += String(chunk);
          if (!body) throw errors.at(-1) ?? new Error("the connection was refused");
          return body;
        },
      };
    },
  };
}

export const ports = [
  ["gRPC", grpcPort],
  ["HTTP", httpPort],
] as const;

/** A handshake alone: whose certificate it was, and what was agreed upon. */
export async function handshake(port: number, options: tls.ConnectionOptions = {}) {
  const socket = tls.connect({
    port,
    host: "localhost",
    servername: "localhost",
    rejectUnauthorized: false,
    ALPNProtocols: ["h2"],
    ...options,
  });
  try {
    await once(socket, "secureConnect");
    return {
      name: socket.getPeerX509Certificate()?.subject,
      alpn: socket.alpnProtocol,
      protocol: socket.getProtocol(),
    };
  } finally {
    socket.destroy();
  }
}
