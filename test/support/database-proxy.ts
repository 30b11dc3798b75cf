import { type Socket, connect, createServer } from "node:net";
import { listenOn } from "./ports.ts";

/** Stands between a server and its database, and fails as networks do. */
export interface DatabaseProxy {
  /** The database's URL, through here. */
  readonly url: string;
  /** What each connection sent first, as text with NULs. */
  readonly startups: readonly string[];
  /** Everything that came from the server, as text. */
  readonly sent: () => string;
  /** How often something was sent after an answer, on all connections. */
  readonly roundTrips: () => number;
  /** Where new connections lead from now on. */
  target(url: string): void;
  /** Takes new connections and hands them on. */
  pass(): Promise<void>;
  /** Refuses new connections. */
  refuse(): Promise<void>;
  /** Takes new connections and says nothing. */
  swallowNew(): void;
  /** Existing connections hear nothing any more, for ever. */
  swallowExisting(): void;
  /** Ends existing connections with a reset. */
  reset(): void;
  close(): Promise<void>;
}

/** How many connections of the service's own pool were begun: those of the delivery queue come and go beside them. */
export const poolStartups = ({ startups }: DatabaseProxy): number =>
  startups.filter((startup) => !startup.includes("delivery")).length;

export const startDatabaseProxy = async (databaseUrl: string): Promise<DatabaseProxy> => {
  const links = new Set<{ readonly client: Socket; readonly upstream: Socket | undefined; swallowed: boolean }>();
  const startups: string[] = [];
  const texts: string[] = [];
  let roundTrips = 0;
  let to = new URL(databaseUrl);
  let swallowing = false;

  const server = createServer((client) => {
    const upstream = swallowing ? undefined : connect({ host: to.hostname, port: Number(to.port) });
    const link = { client, upstream, swallowed: false };
    links.add(link);
    client.once("data", (bytes) => startups.push(bytes.toString("latin1")));
    let isAnswered = true;
    client.on("data", (bytes) => {
      if (isAnswered) roundTrips++;
      isAnswered = false;
      texts.push(bytes.toString("latin1"));
      if (!link.swallowed) upstream?.write(bytes);
    });
    upstream?.on("data", (bytes) => {
      isAnswered = true;
      if (!link.swallowed) client.write(bytes);
    });
    // What the network swallowed hears of no end either.
    client.on("close", () => upstream?.destroy());
    upstream?.on("close", () => !link.swallowed && client.destroy());
    client.on("error", () => undefined);
    upstream?.on("error", () => undefined);
    client.on("close", () => links.delete(link));
  });
  const port = await listenOn(server);
  const url = new URL(databaseUrl);
  url.host = `127.0.0.1:${port}`;

  return {
    url: url.toString(),
    startups,
    sent: () => texts.join(""),
    roundTrips: () => roundTrips,
    target(other) {
      to = new URL(other);
    },
    async pass() {
      swallowing = false;
      if (!server.listening) await listenOn(server, port);
    },
    async refuse() {
      if (server.listening) server.close();
      for (const { client } of links) client.resetAndDestroy();
      await new Promise((resolve) => setImmediate(resolve));
    },
    swallowNew() {
      swallowing = true;
    },
    swallowExisting() {
      for (const link of links) link.swallowed = true;
    },
    reset() {
      for (const { client } of links) client.resetAndDestroy();
    },
    async close() {
      for (const { client } of links) client.destroy();
      if (server.listening) await new Promise((resolve) => server.close(resolve));
    },
  };
};
