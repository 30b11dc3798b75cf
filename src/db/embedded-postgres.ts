import { spawn } from "node:child_process";
import { once } from "node:events";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";

/** What the child process answers, once. */
export type EmbeddedPostgresAnswer = { readonly url: string } | { readonly failure: string };

export interface EmbeddedPostgres {
  /** Of the database `postgres`, with the password. */
  readonly url: string;
  /** Ends PostgreSQL and waits for its end; a second call waits for the same end. */
  stop(): Promise<void>;
}

interface EmbeddedPostgresOptions {
  /** PostgreSQL's cluster, password and lock stand in the folder `postgres` below it. */
  readonly dataDir: string;
  /** False for throw-away data: nothing is synced to disk, so a crash of the machine loses it. */
  readonly durable?: boolean;
  /** Removes the whole `dataDir` once PostgreSQL has ended, however we end: tests leave nothing behind. */
  readonly removeAtEnd?: boolean;
}

/** What the child process is told, once. */
export type EmbeddedPostgresOrder = Required<EmbeddedPostgresOptions>;

const CHILD = fileURLToPath(new URL("./embedded-postgres-process.ts", import.meta.url));

/**
 * Starts a PostgreSQL of our own on 127.0.0.1, on a free port.
 *
 * It lives below a child process in a session of its own, so that the terminal's Ctrl-C reaches neither before the
 * server has drained. The child ends PostgreSQL when its channel to us closes, which the operating system sees to however
 * we end.
 * @throws Error whose message says what stands in the way, e.g. that another process uses the folder.
 */
export const startEmbeddedPostgres = async ({
  dataDir,
  durable = true,
  removeAtEnd = false,
}: EmbeddedPostgresOptions): Promise<EmbeddedPostgres> => {
  const child = spawn(process.execPath, [CHILD], { detached: true, stdio: ["ignore", "ignore", "inherit", "ipc"] });
  // Without a process there is no channel either.
  await once(child, "spawn");
  const ended = once(child, "exit");
  child.send({ dataDir: resolve(dataDir), durable, removeAtEnd } satisfies EmbeddedPostgresOrder);
  const [answer] = (await Promise.race([
    once(child, "message"),
    ended.then(() => [{ failure: "the embedded PostgreSQL's process ended before it was ready" }]),
  ])) as [EmbeddedPostgresAnswer];
  if ("failure" in answer) throw new Error(answer.failure);
  // Who forgot to stop it can still end; the closed channel stops it then.
  child.unref();
  child.channel?.unref();
  return {
    url: answer.url,
    async stop() {
      child.ref();
      if (child.connected) child.disconnect();
      await ended;
    },
  };
};
