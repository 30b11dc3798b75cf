import { type IncomingMessage, type ServerResponse, createServer } from "node:http";
import { type GenerateKeyPairResult, type JWK, SignJWT, exportJWK, generateKeyPair } from "jose";
import { listenOn } from "./ports.ts";

export const CLIENT_ID = "web.apps.googleusercontent.com";
export const OTHER_CLIENT_ID = "android.apps.googleusercontent.com";

/** How the key server answers a request. */
export type Answer = (response: ServerResponse, request: IncomingMessage) => void;

export interface TokenOptions {
  /** Undefined leaves a claim out. */
  readonly claims?: Readonly<Record<string, unknown>>;
  /** Beside `alg` and `kid`, or in place of them. */
  readonly header?: Readonly<Record<string, unknown>>;
  readonly signWith?: Parameters<SignJWT["sign"]>[0];
}

/** Signs ID tokens as Google does, and publishes its keys as a test wants it. */
export interface GoogleIssuer {
  readonly url: string;
  /** What a service needs to trust it. */
  readonly env: Readonly<Record<string, string>>;
  readonly keys: GenerateKeyPairResult;
  /** Who asks for the account with these claims; without claims, one of a new person with a gmail.com address. */
  token(options?: TokenOptions): Promise<string>;
  jwks(): { readonly keys: readonly JWK[] };
  /** How many have asked for the keys. */
  asked(): number;
  /** Makes a new key, which signs from now on; the former are no longer published. */
  rotate(): Promise<void>;
  /** Answers the keys, with these headers. */
  publish(headers?: Readonly<Record<string, string>>): void;
  answer(answer: Answer): void;
  /** Refuses connections, until `up`. */
  down(): Promise<void>;
  up(): Promise<void>;
  close(): Promise<void>;
}

// One is made in a quarter of a second: every issuer of a file begins with the same.
const firstKeys = generateKeyPair("RS256");
let people = 0;

/** The claims of a person that no other test knows. */
export const person = (claims: Readonly<Record<string, unknown>> = {}) => {
  const number = ++people;
  return {
    sub: `1${String(process.pid).padStart(8, "0")}${String(number).padStart(12, "0")}`,
    email: `person-${process.pid}-${number}@gmail.com`,
    email_verified: true,
    name: `Person ${number}`,
    ...claims,
  };
};

export const startGoogleIssuer = async (): Promise<GoogleIssuer> => {
  let generation = 0;
  let asked = 0;
  let kid = "";
  let keys = await firstKeys;
  let published: readonly JWK[] = [];
  let respond: Answer;

  const signWith = async (pair: GenerateKeyPairResult) => {
    keys = pair;
    kid = `key-${++generation}`;
    published = [{ ...(await exportJWK(keys.publicKey)), kid, alg: "RS256", use: "sig" }];
  };
  const publish = (headers: Readonly<Record<string, string>> = { "cache-control": "public, max-age=3600" }) => {
    respond = (response) => {
      response.writeHead(200, { "content-type": "application/json", ...headers });
      response.end(JSON.stringify({ keys: published }));
    };
  };
  await signWith(keys);
  publish();

  const server = createServer((request, response) => {
    asked++;
    respond(response, request);
  });
  const close = async () => {
    if (!server.listening) return;
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  };
  const port = await listenOn(server);
  const url = `http://127.0.0.1:${port}/oauth2/v3/certs`;

  return {
    url,
    env: { GOOGLE_JWKS_URL: url, GOOGLE_CLIENT_IDS: `${CLIENT_ID},${OTHER_CLIENT_ID}`, THROTTLES: "off" },
    get keys() {
      return keys;
    },
    async token({ claims = {}, header = {}, signWith: key = keys.privateKey } = {}) {
      const now = Math.floor(Date.now() / 1_000);
      const issued = { iss: "https://accounts.google.com", azp: CLIENT_ID, aud: CLIENT_ID, iat: now, exp: now + 3_600 };
      const all = { ...issued, ...person(), ...claims };
      return new SignJWT(all).setProtectedHeader({ alg: "RS256", kid, typ: "JWT", ...header }).sign(key);
    },
    jwks: () => ({ keys: published }),
    asked: () => asked,
    rotate: async () => signWith(await generateKeyPair("RS256")),
    publish,
    answer(next) {
      respond = next;
    },
    down: close,
    async up() {
      await listenOn(server, port);
    },
    close,
  };
};
