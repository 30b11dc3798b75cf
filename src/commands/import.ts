import { type FileHandle, open } from "node:fs/promises";
import { resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { parseArgs } from "node:util";
import { type CallOptions, type Client, Code, ConnectError, type Transport, createClient } from "@connectrpc/connect";
import { Presets, SingleBar } from "cli-progress";
import type { Config } from "../config.ts";
import { AuthService, ImportStatus, type ImportUsersResponse_Result } from "../gen/auth/v1/auth_pb.ts";
import { ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.ts";
import { stopOnSignal } from "../signals.ts";
import {
  type Batch,
  type BatchBounds,
  type LineResult,
  peopleOf,
  readBatches,
  reportLine,
  resultsOf,
} from "./import-file.ts";
import { callOwnServer } from "./own-server.ts";
import { rootToken } from "./root-token.ts";
import { runCommand } from "./run.ts";

const HELP = `npm run import -- <people.ndjson> --tenant <id>

Moves people into a tenant: sends the file, one JSON object a line (auth.v1.ImportUsersRequest.User), to the server that
runs on this machine with this configuration. What became of each line stands in <people.ndjson>.report afterwards. It
may be stopped and repeated: who is here already with the same content is left alone.

  --tenant <id>   the tenant that the people are to belong to
  --help          this

  SERVICE_TOKEN   the environment's: a service token with auth.user.import. Without it, root's secret in DATA_DIR is
                  used, outside production.

Exits with 0 where every line was imported, else with 1.
`;

const BATCH_SIZE = 1_000;
/** Enough that the server always has one to work on while others are read and reported. */
const IN_FLIGHT = 3;
const TRIES = 6;
const BACKOFF_MS = 250;
// The call was not answered, or not done: every one of them may be repeated.
const PASSING: ReadonlySet<Code> = new Set([Code.Unavailable, Code.Aborted, Code.DeadlineExceeded]);

interface Import {
  readonly auth: Client<typeof AuthService>;
  readonly tenantId: string;
  readonly options: CallOptions;
  readonly bounds: BatchBounds;
  /** Told by the signals: nothing more is sent, what is under way is reported. */
  readonly stopping: AbortSignal;
}

const told = (error: unknown): string => {
  const failure = ConnectError.from(error);
  const [info] = failure.findDetails(ErrorInfoSchema);
  const what = info ? `${info.reason}: ${failure.rawMessage}` : failure.rawMessage;
  return PASSING.has(failure.code) ? `the server is out of reach (${what})` : `the server refused: ${what}`;
};

const send = async ({ auth, tenantId, options, stopping }: Import, batch: Batch) => {
  const users = peopleOf(batch);
  if (users.length === 0) return [];
  for (let tries = 1; ; tries++) {
    try {
      return (await auth.importUsers({ tenantId, users }, options)).results;
    } catch (error) {
      const isPassing = PASSING.has(ConnectError.from(error).code);
      if (!isPassing || tries === TRIES || stopping.aborted) {
        throw new Error(`${told(error)}; what was imported stands${isPassing ? ": run it again" : ""}`, {
          cause: error,
        });
      }
    }
    await sleep(BACKOFF_MS * 2 ** (tries - 1), undefined, { signal: stopping }).catch(() => undefined);
  }
};

/** Counts what became of lines, refusals by their reason. */
const createTally = () => {
  const counts = { created: 0, unchanged: 0 };
  const reasons = new Map<string, number>();
  return {
    add({ result: { status, reason = "" } }: LineResult) {
      if (status === ImportStatus.CREATED) counts.created++;
      else if (status === ImportStatus.UNCHANGED) counts.unchanged++;
      else reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
    },
    refused: () => [...reasons.values()].reduce((sum, count) => sum + count, 0),
    summary() {
      const byReason = [...reasons].toSorted(([a], [b]) => (a < b ? -1 : 1)).map(([reason, n]) => `${n} ${reason}`);
      const refused = `${this.refused()} refused${byReason.length > 0 ? ` (${byReason.join(", ")})` : ""}`;
      return `${counts.created} created, ${counts.unchanged} unchanged, ${refused}`;
    },
  };
};
type Tally = ReturnType<typeof createTally>;

/** Only where a terminal looks. */
const startBar = (bytes: number): SingleBar | undefined => {
  if (!process.stderr.isTTY) return undefined;
  const bar = new SingleBar({ stream: process.stderr, clearOnComplete: true }, Presets.shades_classic);
  bar.start(bytes, 0);
  return bar;
};

/** Takes the place of a former one once there is something to report: a run that fails before leaves that. */
const reportInto = (file: FileHandle, path: string) => {
  let isBegun = false;
  return {
    async write(lines: string) {
      try {
        if (!isBegun) await file.truncate();
        isBegun = true;
        await file.writeFile(lines);
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        throw new Error(`${path} cannot be written: ${code}; what was imported stands: run it again`, { cause: error });
      }
    },
  };
};
type Report = ReturnType<typeof reportInto>;

interface Sent {
  readonly batch: Batch;
  readonly results: Promise<ImportUsersResponse_Result[]>;
}

/** Sends a file's people and reports on them in the file's order. */
const importFile = async (work: Import, people: FileHandle, report: Report, tally: Tally): Promise<void> => {
  const bar = startBar((await people.stat()).size);
  const underWay: Sent[] = [];
  const settleOldest = async () => {
    const sent = underWay.shift();
    if (!sent) return;
    const results = resultsOf(sent.batch, await sent.results);
    await report.write(results.map(reportLine).join(""));
    results.forEach((result) => tally.add(result));
    bar?.increment(sent.batch.bytes);
  };
  try {
    for await (const batch of readBatches(people, work.bounds)) {
      if (work.stopping.aborted) break;
      const results = send(work, batch);
      // It is awaited in its turn, and no fault of the process until then.
      results.catch(() => undefined);
      underWay.push({ batch, results });
      if (underWay.length === IN_FLIGHT) await settleOldest();
    }
    while (underWay.length > 0) await settleOldest();
    await report.write("");
  } finally {
    await Promise.allSettled(underWay.map(({ results }) => results));
    bar?.stop();
  }
};

const ACCEPTS = {
  allowPositionals: true,
  options: { tenant: { type: "string" }, help: { type: "boolean" } },
} as const;

/** What a process has open, by which name soever: no folder of anybody's, in which a report could stand. */
const OPEN_ALREADY = /^\/dev\/std|^\/(dev|proc\/\w+)\/fd\//;

const askedBy = ({ values, positionals }: ReturnType<typeof parseArgs<typeof ACCEPTS>>) => {
  const [file, ...others] = positionals;
  if (values.help) return undefined;
  if (file === undefined || others.length > 0 || values.tenant === undefined) {
    throw new Error("which file, and into which tenant? npm run import -- <people.ndjson> --tenant <id>");
  }
  if (OPEN_ALREADY.test(resolve(file)))
    throw new Error(`beside ${file} no report can stand: name a file, or a named pipe`);
  return { file, tenantId: values.tenant };
};

const openFile = async (path: string, flags: string) => {
  try {
    // The report names users: it is for whoever imports alone.
    const file = await open(path, flags, 0o600);
    if (!(await file.stat()).isDirectory()) return file;
    await file.close();
    throw Object.assign(new Error("a folder"), { code: "EISDIR" });
  } catch (error) {
    throw new Error(`${path} cannot be opened: ${(error as NodeJS.ErrnoException).code}`, { cause: error });
  }
};

/** Whether it still is what it was: of what grows or is cut off while it is read nobody knows how much was read. */
const watchChange = async (file: FileHandle) => {
  const former = await file.stat();
  return async () => {
    const { size, mtimeMs } = await file.stat();
    return former.isFile() && (size !== former.size || mtimeMs !== former.mtimeMs);
  };
};

const tokenOf = async (config: Config, transport: Transport): Promise<string> => {
  if (config.serviceToken !== undefined) return config.serviceToken;
  if (config.production) throw new Error("SERVICE_TOKEN is not set: in production it needs one");
  try {
    return await rootToken(config, transport);
  } catch (error) {
    throw error instanceof ConnectError ? new Error(told(error), { cause: error }) : error;
  }
};

const stopBySignals = (): AbortSignal => {
  const controller = new AbortController();
  controller.signal.addEventListener("abort", () => {
    process.stderr.write("stopping: what was sent is still reported\n");
  });
  stopOnSignal(() => controller.abort());
  return controller.signal;
};

/** `npm run import -- people.ndjson --tenant <id>`: a summary on stdout, the rest in the report and on stderr. */
await runCommand(async (config, args) => {
  const asked = askedBy(args);
  if (!asked) return void process.stdout.write(HELP);
  const { file, tenantId } = asked;
  // Before signals are listened to: of a pipe that nobody writes to this waits without an end, as would a process that exits.
  await using people = await openFile(file, "r");
  const hasChanged = await watchChange(people);
  const stopping = stopBySignals();
  const tally = createTally();
  await callOwnServer(config, async (transport) => {
    const bounds = { people: BATCH_SIZE, messageBytes: config.messageMaxBytes };
    const options = { headers: { authorization: `Bearer ${await tokenOf(config, transport)}` } };
    const auth = createClient(AuthService, transport);
    const path = `${file}.report`;
    await using report = await openFile(path, "a");
    await importFile({ auth, tenantId, options, bounds, stopping }, people, reportInto(report, path), tally);
  });
  process.stdout.write(`${stopping.aborted ? "stopped: " : ""}${tally.summary()}; each line: ${file}.report\n`);
  const changed = await hasChanged();
  if (changed) process.stderr.write(`${file} has changed while it was read: run it again\n`);
  if (tally.refused() > 0 || stopping.aborted || changed) process.exitCode = 1;
}, ACCEPTS);
