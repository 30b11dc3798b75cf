import { Client, type ClientConfig, types } from "pg";
import { type DriverConfiguration, parseDsn } from "slonik";

// Node-postgres takes few parameters of a connection's beginning, and declares none of what sends them.
declare module "pg" {
  interface Client {
    getStartupConf(): Readonly<Record<string, string>>;
  }
}

/**
 * Times are read in one style, and a database or a role may have another. PgBouncer takes this parameter, which it tracks,
 * and sets it anew for each transaction unless it is written as PostgreSQL reports it.
 */
export class IsoClient extends Client {
  override getStartupConf() {
    return { ...super.getStartupConf(), datestyle: "ISO, MDY" };
  }

  override connect(): Promise<Client>;
  override connect(callback: (error: Error) => void): void;
  // Where the beginning fails node-postgres leaves the socket to whom it leads to, which may keep it.
  override connect(callback?: (error: Error) => void): Promise<Client> | undefined {
    const { promise, resolve, reject } = Promise.withResolvers<Client>();
    super.connect((error: Error | null) => {
      if (error) this.connection.stream.destroy();
      if (callback) callback(error as Error);
      else if (error) reject(error);
      else resolve(this);
    });
    return callback ? undefined : promise;
  }
}

const TEXT_ARRAY = 1009;
// Built-in types never change their OIDs; asking for them would be one more connection, on which nobody hears an error.
const OIDS: Readonly<Record<string, readonly [type: number, array: number]>> = {
  int8: [20, 1016],
  date: [1082, 1182],
  timestamp: [1114, 1115],
  timestamptz: [1184, 1185],
  interval: [1186, 1187],
  numeric: [1700, 1231],
};

type Parse = (text: string) => unknown;

const usualParser = types.getTypeParser as (oid: number) => Parse;
const textArray = (text: string) => usualParser(TEXT_ARRAY)(text) as (string | null)[];

const typeParsersOf = ({ typeParsers }: DriverConfiguration): ClientConfig["types"] => {
  const parsers = new Map<number, Parse>();
  for (const { name, parse } of typeParsers) {
    const oids = OIDS[name];
    if (!oids) throw new Error(`the driver knows no OID of the type ${name}`);
    parsers.set(oids[0], parse);
    parsers.set(oids[1], (text) => textArray(text).map((item) => (item === null ? null : parse(item))));
  }
  return { getTypeParser: (oid: number) => parsers.get(oid) ?? usualParser(oid) };
};

const sslOf = (ssl: DriverConfiguration["ssl"], mode: string | undefined): ClientConfig["ssl"] => {
  if (ssl) return ssl;
  if (mode === "no-verify") return { rejectUnauthorized: false };
  return mode === "require";
};

const numberOf = (limit: "DISABLE_TIMEOUT" | number) => (limit === "DISABLE_TIMEOUT" ? undefined : limit);

const present = (config: object): ClientConfig =>
  Object.fromEntries(Object.entries(config).filter(([, value]) => value !== undefined));

/** Where a connection leads and as whom, as node-postgres wants it. */
export const endpointOf = (connectionUri: string, ssl: DriverConfiguration["ssl"]): ClientConfig => {
  const dsn = parseDsn(connectionUri);
  return present({
    host: dsn.host,
    port: dsn.port,
    user: dsn.username,
    password: dsn.password,
    database: dsn.databaseName,
    application_name: dsn.applicationName,
    options: dsn.options,
    ssl: sslOf(ssl, dsn.sslMode),
    keepAlive: true,
  });
};

/** A connection as slonik was configured to open it. */
export const clientConfigOf = (configuration: DriverConfiguration): ClientConfig => ({
  ...endpointOf(configuration.connectionUri, configuration.ssl),
  ...present({
    types: typeParsersOf(configuration),
    connectionTimeoutMillis: numberOf(configuration.connectionTimeout),
    statement_timeout: numberOf(configuration.statementTimeout),
    idle_in_transaction_session_timeout: numberOf(configuration.idleInTransactionSessionTimeout),
  }),
});
