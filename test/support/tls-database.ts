import { once } from "node:events";
import { type AddressInfo, connect, createServer } from "node:net";
import { TLSSocket } from "node:tls";
import { onTestFinished } from "vitest";
import type { Identity } from "./certificates.ts";

/** Of what asks whether the server speaks TLS: https://www.postgresql.org/docs/16/protocol-message-formats.html */
const SSL_REQUEST = 80_877_103;

interface TlsDatabase {
  /** The database's URL, by this name of its host. */
  urlAt(host: "localhost" | "127.0.0.1"): URL;
  /** How each connection went on that was begun: encrypted, or not. */
  readonly begun: readonly ("encrypted" | "plain")[];
  /** Has this certificate from now on; connections that are open stay. */
  renew(identity: Identity): void;
}

/** Stands before a database, as one with this certificate that takes connections with TLS and without. */
export const startTlsDatabase = async (databaseUrl: string, first: Identity): Promise<TlsDatabase> => {
  let { cert, key } = first;
  const { hostname, port } = new URL(databaseUrl);
  const begun: ("encrypted" | "plain")[] = [];
  const server = createServer((client) => {
    client.on("error", () => undefined);
    client.once("data", (bytes) => {
      const asksForTls = bytes.length === 8 && bytes.readInt32BE(4) === SSL_REQUEST;
      if (asksForTls) client.write("S");
      const socket = asksForTls ? new TLSSocket(client, { isServer: true, cert, key }) : client;
      socket.on("error", () => client.destroy());
      const upstream = connect({ host: hostname, port: Number(port) });
      upstream.on("error", () => client.destroy());
      client.on("close", () => upstream.destroy());
      if (asksForTls) socket.once("data", () => begun.push("encrypted"));
      else {
        begun.push("plain");
        upstream.write(bytes);
      }
      socket.pipe(upstream).pipe(socket);
    });
  });
  server.listen(0, "localhost");
  await once(server, "listening");
  onTestFinished(() => void server.close());
  return {
    begun,
    renew(identity) {
      ({ cert, key } = identity);
    },
    urlAt(host) {
      const url = new URL(databaseUrl);
      url.host = `${host}:${(server.address() as AddressInfo).port}`;
      return url;
    },
  };
};
