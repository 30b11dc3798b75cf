import { type Client, type Connection, Query, type QueryConfig, type QueryResult } from "pg";

// As slonik begins and ends a transaction.
const BEGIN = "START TRANSACTION";
const ENDS: ReadonlySet<string> = new Set(["COMMIT", "ROLLBACK"]);

/** What is answered where nothing was sent. */
const NOTHING = { command: "", fields: [], rowCount: null, rows: [] } as const;
type Answer = Pick<QueryResult, "command" | "fields" | "rowCount" | "rows"> | typeof NOTHING;

/** What goes with a statement that is none itself. */
export interface Company {
  /** With a transaction's beginning: what each of its statements may take, in milliseconds. */
  readonly timeoutMs?: number | undefined;
  /** The transaction's end goes right behind the statement, and only both are an answer. */
  readonly commits?: boolean;
}

export type Send = (statement: QueryConfig, company: Company) => Promise<Answer>;

/**
 * A transaction's beginning and its first statement as one message. Between them stands no Sync: where the beginning fails,
 * PostgreSQL skips the statement, which would be committed by itself (PostgreSQL, 55.2.3 Extended Query).
 */
const queryWithBeginning = (
  client: Client,
  beginning: readonly string[],
  statement: QueryConfig,
): Promise<QueryResult> => {
  const { promise, resolve, reject } = Promise.withResolvers<QueryResult>();
  // By itself node-postgres sends a statement without values by the simple protocol, whose statements are never skipped.
  const config = { ...statement, queryMode: "extended" };
  const query = new Query(config, (error: Error | null | undefined, results: unknown) => {
    if (error) reject(error);
    else resolve((results as readonly QueryResult[])[beginning.length] as QueryResult);
  });
  const { submit } = query;
  query.submit = (connection: Connection) => {
    for (const text of beginning) {
      connection.parse({ name: "", text, types: [] }, true);
      connection.bind({}, true);
      connection.execute({}, true);
    }
    submit.call(query, connection);
  };
  client.query(query);
  return promise;
};

const queryAlone = (client: Client, { text, values, name }: QueryConfig): Promise<QueryResult> =>
  // A configuration is copied property by property, which costs more than all else of the sending.
  name === undefined ? client.query(text, values as unknown[]) : client.query({ text, values: values ?? [], name });

/** The end is sent before the statement is answered: of a transaction that failed, COMMIT is a rollback. */
const withCommit = async (client: Client, answer: Promise<QueryResult>): Promise<QueryResult> => {
  const [statement, end] = await Promise.allSettled([answer, client.query("COMMIT")]);
  if (statement.status === "rejected") throw statement.reason;
  if (end.status === "rejected") throw end.reason;
  return statement.value;
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
  /** The transaction's end was sent with its last statement. */
  let ended = false;

  return async (statement, { timeoutMs, commits = false }) => {
    const { text } = statement;
    if (text === BEGIN) {
      beginning = timeoutMs === undefined ? [BEGIN] : [BEGIN, `SET LOCAL statement_timeout = ${Math.ceil(timeoutMs)}`];
      return NOTHING;
    }
    if (ENDS.has(text) && (beginning || ended)) {
      beginning = undefined;
      ended = false;
      return NOTHING;
    }
    if (ended) throw new Error("a statement after its transaction's end");
    const first = beginning;
    beginning = undefined;
    ended = commits;
    return await asOne(client, () => {
      const answer = first ? queryWithBeginning(client, first, statement) : queryAlone(client, statement);
      return commits ? withCommit(client, answer) : answer;
    });
  };
};
