import type { Config } from "../config.ts";
import type { Database } from "../db/pool.ts";
import type { Log } from "../log.ts";
import type { Macs } from "../macs.ts";
import type { Waiting } from "../rpc/call.ts";
import { Refusal } from "../rpc/refusal.ts";
import type { Client } from "./clients.ts";
import { type Bucket, countInBuckets } from "./throttle-buckets.ts";

/** A try at something that may be guessed or flooded. */
export interface Try {
  readonly act: "login" | "code-request" | "code";
  readonly tenantId: string;
  /** The normalised contact that was named; undefined where the request names none that is known. */
  readonly identifier: string | undefined;
  readonly client: Client;
  /** The identifier's user logged in from the client's network lately. */
  readonly networkIsKnown: boolean;
}

/** How often something may be done at all, failed or not. It also holds where `THROTTLES` is off. */
export interface Limit {
  /** What is limited, in the try's tenant. */
  readonly subject: readonly string[];
  readonly max: number;
  /** Milliseconds. 0 is no limit. */
  readonly windowMs: number;
}

export interface Throttles {
  /**
   * Counts a try before its work, apart from the work's transaction, and gives it back unless it has failed.
   * @param hasFailed whether it has: by default where the work answers with undefined. What we refuse for a reason that is
   * not the caller's fault must not count against those whom it hits.
   * @throws RATE_LIMITED with RetryInfo, and such a try counts no further; or what the work throws.
   */
  during<T>(
    waiting: Waiting,
    attempt: Try,
    work: () => Promise<T>,
    hasFailed?: (outcome: PromiseSettledResult<T>) => boolean,
  ): Promise<T>;
  /**
   * Counts a try that has failed already, or has limits of its own.
   * @throws RATE_LIMITED as above
   */
  count(waiting: Waiting, attempt: Try, limits?: readonly Limit[]): Promise<CountedTry>;
}

/** A try that was counted by itself, without its work. */
interface CountedTry {
  /** Milliseconds until the limits take another. */
  readonly nextMs: number;
  /** For a try that came to nothing, by no fault of who tried. */
  giveBack(): Promise<void>;
}

interface ThrottlesOptions {
  readonly db: Database;
  readonly macs: Macs;
  readonly config: Config["throttles"];
  readonly log: Log;
  /** Told of each try that is refused. */
  readonly onRefused?: (act: Try["act"]) => void;
}

const isNothing = (outcome: PromiseSettledResult<unknown>) =>
  outcome.status === "fulfilled" && outcome.value === undefined;

/** Which buckets have tries whose end this process does not know yet, and how many. */
const createUnderWay = () => {
  const counts = new Map<string, number>();
  const add = (key: string, by: number) => {
    const count = (counts.get(key) ?? 0) + by;
    if (count > 0) counts.set(key, count);
    else counts.delete(key);
  };
  return {
    has: (key: string) => counts.has(key),
    begin: (buckets: readonly Bucket[]) => buckets.forEach(({ key }) => add(key, 1)),
    end: (buckets: readonly Bucket[]) => buckets.forEach(({ key }) => add(key, -1)),
  };
};

export const createThrottles = ({ db, macs, config, log, onRefused }: ThrottlesOptions): Throttles => {
  // By tenant, so that nobody fills a bucket of another one's users.
  const keyOf = ({ act, tenantId }: Try, kind: string, subject: readonly string[]) =>
    macs.tag("throttle", JSON.stringify([act, kind, tenantId.toLowerCase(), ...subject]));

  const bucketsOf = (attempt: Try): readonly Bucket[] => {
    if (!config.enabled) return [];
    const { identifier, networkIsKnown } = attempt;
    const { network } = attempt.client;
    const bucket = (kind: string, subject: readonly string[], max: number, grows: boolean): Bucket => ({
      key: keyOf(attempt, kind, subject),
      max,
      windowMs: config.windowMs,
      grows,
    });
    const own =
      identifier !== undefined && network !== undefined
        ? [bucket("identifier-address", [identifier, network], config.identifierAddressMax, true)]
        : [];
    // Nothing that others do refuses a user where he logs in; and since most logins are such, most wait for no other.
    if (networkIsKnown && own.length > 0) return own;
    // What is filled from many networks refuses people who are in none of them: for no longer than a window.
    return [
      ...own,
      ...(identifier === undefined ? [] : [bucket("identifier", [identifier], config.identifierMax, false)]),
      ...(network === undefined ? [] : [bucket("address", [network], config.addressMax, true)]),
      bucket("tenant", [], config.tenantMax, false),
    ];
  };

  const underWay = createUnderWay();
  // The window forgets the try by itself.
  const orLater = (givenBack: Promise<void>) =>
    givenBack.catch((error: unknown) => log.warn({ err: error }, "a try was not given back"));

  const countIn = async (waiting: Waiting, { act }: Try, buckets: readonly Bucket[]) => {
    try {
      return await countInBuckets(db, waiting, buckets, underWay.has);
    } catch (error) {
      if (error instanceof Refusal && error.reason === "RATE_LIMITED") onRefused?.(act);
      throw error;
    }
  };

  return {
    async during(waiting, attempt, work, hasFailed = isNothing) {
      const buckets = bucketsOf(attempt);
      if (buckets.length === 0) return work();
      const { giveBack } = await countIn(waiting, attempt, buckets);
      underWay.begin(buckets);
      const [outcome] = await Promise.allSettled([work()]);
      if (!hasFailed(outcome)) {
        // What succeeded has been committed: its answer is that.
        await orLater(giveBack());
      }
      underWay.end(buckets);
      if (outcome.status === "rejected") throw outcome.reason;
      return outcome.value;
    },
    async count(waiting, attempt, limits = []) {
      const limiting = limits
        .filter(({ windowMs }) => windowMs > 0)
        .map(({ subject, max, windowMs }) => ({ key: keyOf(attempt, "limit", subject), max, windowMs, grows: false }));
      const buckets = [...bucketsOf(attempt), ...limiting];
      if (buckets.length === 0) return { nextMs: 0, giveBack: () => Promise.resolve() };
      const { fullForMs, giveBack } = await countIn(waiting, attempt, buckets);
      return {
        nextMs: Math.max(0, ...limiting.map(({ key }) => fullForMs(key))),
        giveBack: () => orLater(giveBack()),
      };
    },
  };
};
