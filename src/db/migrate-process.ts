import { once } from "node:events";
import { connect } from "node:net";
import { fileURLToPath } from "node:url";
import { Logger, migrate } from "graphile-migrate";
import { Logger as QueueLogger, runMigrations } from "graphile-worker";
import { Client } from "pg";

export interface Migrated {
  /** The files that this run applied, in their order. */
  readonly applied: readonly string[];
  /** How many steps of graphile-worker's own it took, which make the delivery queue. */
  readonly queueSteps: number;
}

/** What this process says once; `busy` where another migrates the same database. */
export type MigrateAnswer = Migrated | { readonly failure: string; readonly busy: boolean };

/** How long the database's host may take to answer: graphile-migrate itself would wait for as long as TCP does. */
const CONNECT_MS = 10_000;

const NO_ANSWER = `no answer within ${CONNECT_MS} ms`;

/** By the client's own reading of the URL, which is the service's too: node-postgres heeds PGPORT. */
const outOfReach = (url: URL, { host, port }: Client, why: string | undefined, cause: unknown) =>
  new Error(`the database at ${url.hostname || host}:${port} is out of reach: ${why}`, { cause });

const reach = async (url: URL, client: Client): Promise<void> => {
  const { host, port } = client;
  // A folder's socket file answers at once or never.
  if (host.startsWith("/")) return;
  const socket = connect({ host, port });
  try {
    await once(socket, "connect", { signal: AbortSignal.timeout(CONNECT_MS) });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw outOfReach(url, client, code === "ABORT_ERR" ? NO_ANSWER : code, error);
  } finally {
    socket.destroy();
  }
};

/** @throws where the database cannot hold whatever a caller may send: its calls would fail one by one. */
const holdsEveryText = async (url: URL, client: Client): Promise<void> => {
  try {
    await client.connect();
  } catch (error) {
    if ((error as Error).message !== "timeout expired") throw error;
    throw outOfReach(url, client, NO_ANSWER, error);
  }
  try {
    const { rows } = await client.query<{ server_encoding: string }>("SHOW server_encoding");
    const encoding = rows[0]?.server_encoding;
    if (encoding !== "UTF8") throw new Error(`the database's encoding is ${encoding}, and must be UTF8`);
  } finally {
    await client.end();
  }
};

const answer = (value: MigrateAnswer): Promise<void> =>
  new Promise((resolve) => (process.connected && process.send ? process.send(value, () => resolve()) : resolve()));

const applied: string[] = [];
let running: string | undefined;
// graphile-migrate tells what it did in its log alone.
const logger = new Logger(() => (_level, message) => {
  const [, lost] = /^An error occurred in the PgPool: (.*)/s.exec(message) ?? [];
  // It ends the process next: what is written to the channel by then arrives.
  if (lost !== undefined) void answer({ failure: `the connection to the database was lost: ${lost}`, busy: false });
  const [, file] = /Running migration '([^']+)'/.exec(message) ?? [];
  if (!file) return;
  if (running) applied.push(running);
  running = file;
});

const queueSteps = new Set<string>();
// Likewise graphile-worker, whose schema is the delivery queue's; a step that another has done is taken back.
const queueLogger = new QueueLogger(() => (_level, message) => {
  const [, begun] = /^Running \S+ migration (\S+)$/.exec(message) ?? [];
  const [, overtaken] = /has performed migration (\S+);/.exec(message) ?? [];
  if (begun) queueSteps.add(begun);
  if (overtaken) queueSteps.delete(overtaken);
});

const fail = ({ message }: Error): Promise<void> => {
  const busy = message === "Failed to get exclusive lock";
  // What keeps a file from running says its name; the one that ran last is another.
  const isNamed = !running || /\b\d{6}\S*\.sql\b/.test(message);
  return answer({ failure: isNamed ? message : `${running}: ${message}`, busy });
};
// Nobody else hears of a connection that is lost while graphile-migrate uses it.
process.on("uncaughtException", (error) => void fail(error).then(() => process.exit()));
// Whoever wants to know the outcome is gone: what is under way is rolled back, and may be repeated.
process.once("disconnect", () => process.exit());

const [url] = (await once(process, "message")) as [string];
try {
  // It may also take the connection and say nothing.
  const client = new Client({ connectionString: url, connectionTimeoutMillis: CONNECT_MS, query_timeout: CONNECT_MS });
  await reach(new URL(url), client);
  await holdsEveryText(new URL(url), client);
  await migrate({
    connectionString: url,
    // Used to recreate databases, which applying migrations never does; named, so that no variable of the environment is.
    rootConnectionString: "template1",
    migrationsFolder: fileURLToPath(new URL("../../migrations", import.meta.url)),
    logger,
  });
  if (running) applied.push(running);
  running = undefined;
  await runMigrations({ connectionString: url, logger: queueLogger });
  await answer({ applied, queueSteps: queueSteps.size });
} catch (error) {
  await fail(error as Error);
}
// graphile-migrate keeps its pool for a while, in case that somebody migrates again.
process.exit();
