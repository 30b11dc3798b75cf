import { type Client, type Connection, Query, type QueryConfig, type QueryResult } from "pg";

// As slonik begins and ends a transaction.
const BEGIN = "START TRANSACTION";
// A database or a role may have another default, which no start-up option overrides behind PgBouncer.
const BEGIN_READ_COMMITTED = `${BEGIN} ISOLATION LEVEL READ COMMITTED`;
const COMMIT = "COMMIT";
const ROLLBACK = "ROLLBACK";

const setLocal = (name: string, ms: number | undefined) =>
  ms === undefined ? [] : [`SET LOCAL ${name} = ${Math.ceil(ms)}`];

/** What is answered where nothing was sent. */
const NOTHING = { command: "", fields: [], rowCount: null, rows: [] } as const;
type Answer = Pick<QueryResult, "command" | "fields" | "rowCount" | "rows"> | typeof NOTHING;

/** What a statement is sent with. */
export interface SendOptions {
  /** With a transaction's beginning: what each of its statements may take, in milliseconds. */
  readonly timeoutMs?: number | undefined;
  /** Likewise, how long it may do nothing between two of them, in milliseconds. */
  readonly idleMs?: number | undefined;
  /** The transaction's end goes right behind the statement, and only both are an answer. */
  readonly commits?: boolean;
}

type Send = (statement: QueryConfig, options: SendOptions) => Promise<Answer>;

/** A statement that was handed to a connection. */
interface Sent {
  readonly answer: Promise<QueryResult>;
  /** It failed before it left, such as over a value that cannot be written: PostgreSQL knows nothing of that. */
  readonly hasFailed: () => boolean;
}

/**
 * Sends a statement, with these before it as one message. Between them stands no Sync: where the beginning of a transaction
 * fails, PostgreSQL skips the statement, which would be committed by itself (PostgreSQL, 55.2.3 Extended Query).
 */
const submit = (client: Client, before: readonly string[], { text, values, name }: QueryConfig): Sent => {
  const { promise, resolve, reject } = Promise.withResolvers<QueryResult>();
  let failed = false;
  // By itself node-postgres sends a statement without values by the simple protocol, whose statements are never skipped.
  // Behind another it has no name: node-postgres would take the other's parsing for its own, and never parse it again.
  const config = { text, values: values ?? [], queryMode: "extended", name: before.length > 0 ? undefined : name };
  const query = new Query(config, (error: Error | null | undefined, results: unknown) => {
    failed = Boolean(error);
    if (error) reject(error);
    else resolve([results].flat()[before.length] as QueryResult);
  });
  const submitAlone = query.submit;
  query.submit = (connection: Connection) => {
    for (const earlier of before) {
      connection.parse({ name: "", text: earlier, types: [] }, true);
      connection.bind({}, true);
      connection.execute({}, true);
    }
    return submitAlone.call(query, connection);
  };
  client.query(query);
  return { answer: promise, hasFailed: () => failed };
};

/** @throws where PostgreSQL answers that it has rolled back, since a statement of the transaction had failed. */
const commit = async (client: Client): Promise<QueryResult> => {
  const answer = await client.query(COMMIT);
  if (answer.command !== COMMIT) throw new Error("the transaction had failed, and was rolled back");
  return answer;
};

/** Both have been sent; what is wrong with the statement says more than what then becomes of the commit. */
const both = async (statement: Promise<QueryResult>, end: Promise<QueryResult>): Promise<QueryResult> => {
  const [answered, ended] = await Promise.allSettled([statement, end]);
  if (answered.status === "rejected") throw answered.reason;
  if (ended.status === "rejected") throw ended.reason;
  return answered.value;
};

const queryAlone = (client: Client, { text, values, name }: QueryConfig): Promise<QueryResult> => {
  if (text === COMMIT) return commit(client);
  // A configuration is copied property by property, which costs more than all else of the sending.
  return name === undefined
    ? client.query(text, values as unknown[])
    : client.query({ text, values: values ?? [], name });
};

/** What `send` writes at once leaves in one piece. */
const asOne = <T>({ connection: { stream } }: Client, send: () => T): T => {
  stream.cork();
  try {
    return send();
  } finally {
    stream.uncork();
  }
};

/**
 * Sends the statements of one connection, a transaction's first together with its beginning and its last together with its
 * end: what is held locked meanwhile is held for two round trips less.
 *
 * @param client of a connection in pipeline mode.
 */
export const createSender = (client: Client): Send => {
  /** Of a transaction that was asked for, what is to be sent with its first statement. */
  let beginning: readonly string[] | undefined;
  /** Why the transaction can only be rolled back: nothing of it may run by itself. */
  let dead: Error | undefined;
  /** The transaction's end was sent with its last statement. */
  let ended = false;

  const sendTogether = async (before: readonly string[], statement: QueryConfig, commits: boolean) => {
    try {
      return await asOne(client, () => {
        const { answer, hasFailed } = submit(client, before, statement);
        // Of a transaction that PostgreSQL knows to have failed, COMMIT is a rollback; of another it must not be sent.
        ended = commits && !hasFailed();
        return ended ? both(answer, commit(client)) : answer;
      });
    } catch (error) {
      if (!ended) dead = new Error("the transaction has failed", { cause: error });
      throw error;
    }
  };

  return async (statement, { timeoutMs, idleMs, commits = false }) => {
    const { text } = statement;
    if (text === BEGIN) {
      beginning = [
        BEGIN_READ_COMMITTED,
        ...setLocal("statement_timeout", timeoutMs),
        ...setLocal("idle_in_transaction_session_timeout", idleMs),
      ];
      return NOTHING;
    }
    const before = beginning;
    beginning = undefined;
    if (text === COMMIT || text === ROLLBACK) {
      const isSilent = before !== undefined || ended;
      ended = false;
      if (isSilent) return NOTHING;
      if (dead && text === COMMIT) throw dead;
      dead = undefined;
      return await queryAlone(client, statement);
    }
    if (ended) throw new Error("a statement after its transaction's end");
    if (dead) throw dead;
    return before || commits
      ? await sendTogether(before ?? [], statement, commits)
      : await queryAlone(client, statement);
  };
};
