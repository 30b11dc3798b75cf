import { once } from "node:events";
import { type Server, createServer } from "node:http";
import { type Http2SecureServer, type ServerHttp2Session, createSecureServer } from "node:http2";
import { type AddressInfo, Socket } from "node:net";
import { cors as connectCors } from "@connectrpc/connect";
import type { connectNodeAdapter } from "@connectrpc/connect-node";
import cors from "cors";
import type { Config } from "../config.ts";
import type { Log } from "../log.ts";
import { cutOffEnded } from "./ended-sockets.ts";
import { answerNoneGone } from "./gone-streams.ts";
import { HTTP2_OPTIONS, HTTP2_SETTINGS } from "./http2-options.ts";
import { endIdle, isLate } from "./idle-sessions.ts";
import type { Metrics } from "./metrics.ts";
import { isTooMany } from "./pipelined-requests.ts";
import { boundRequest } from "./request-bodies.ts";
import { endSilent } from "./silent-sessions.ts";
import type { Certificates } from "./tls.ts";

const OWN_HEADERS = ["authorization", "x-actor-token", "x-request-id"];

/** Answers a request of HTTP/1.1 or HTTP/2. */
export type HttpHandler = ReturnType<typeof connectNodeAdapter>;
export type HttpRequest = Parameters<HttpHandler>[0];
export type HttpResponse = Parameters<HttpHandler>[1];

/** The HTTP port. */
export interface HttpServer {
  /** Answers with the port that it listens on. */
  listen(): Promise<number>;
  /** Takes no new connection, lets what began end, and closes connections as they fall idle. */
  drain(): Promise<void>;
  /** Ends what has not ended. */
  force(): void;
}

interface HttpOptions {
  readonly config: Config;
  readonly handler: HttpHandler;
  readonly certificates: Certificates | undefined;
}

interface SideRoutesOptions {
  readonly metrics: Metrics;
  readonly isReady: () => boolean;
  /** The public keys of access tokens, a JWKS. */
  readonly jwks: () => string;
  readonly log: Log;
}

// Whoever verifies tokens by it must know a new key before it signs: a rotation waits for longer than this.
const JWKS_CACHE = "public, max-age=60";

/** What the HTTP port serves beside RPCs. */
export const createSideRoutes =
  ({ metrics, isReady, jwks, log }: SideRoutesOptions): HttpHandler =>
  (request, response) => {
    const path = request.url?.split("?", 1)[0];
    if (request.method !== "GET" && request.method !== "HEAD") return end(response, 404, "not found\n");
    if (path === "/healthz") return isReady() ? end(response, 200, "ok\n") : end(response, 503, "not ready\n");
    if (path === "/.well-known/jwks.json") return end(response, 200, jwks(), "application/json", JWKS_CACHE);
    if (path !== "/metrics") return end(response, 404, "not found\n");
    void metrics.registry.metrics().then(
      (text) => end(response, 200, text, metrics.registry.contentType),
      (error: unknown) => {
        log.error({ err: error }, "metrics cannot be gathered");
        end(response, 500, "metrics cannot be gathered\n");
      },
    );
  };

const end = (
  response: HttpResponse,
  status: number,
  body: string,
  contentType = "text/plain; charset=utf-8",
  cacheControl?: string,
) => {
  response.statusCode = status;
  response.setHeader("content-type", contentType);
  if (cacheControl !== undefined) response.setHeader("cache-control", cacheControl);
  response.end(body);
};

/** A request that names its whole URL, as one to a proxy does, is taken as well (RFC 9112, 3.2.2). */
const pathOf = (url = "/"): string => (url.startsWith("/") ? url : url.replace(/^https?:\/\/[^/?#]*\/?/i, "/"));

const withCors = (origins: readonly string[], handler: HttpHandler): HttpHandler => {
  if (origins.length === 0) return handler;
  const middleware = cors({
    origin: [...origins],
    methods: [...connectCors.allowedMethods],
    allowedHeaders: [...connectCors.allowedHeaders, ...OWN_HEADERS],
    exposedHeaders: [...connectCors.exposedHeaders, "x-request-id"],
    maxAge: 3_600,
  });
  return (request, response) => middleware(request, response, () => handler(request, response));
};

/** HTTP/1.1, and HTTP/2 beside it where TLS negotiates it. */
export const createHttpServer = ({ config, handler, certificates }: HttpOptions): HttpServer => {
  const sockets = new Set<Socket>();
  let draining = false;

  // Within the bounds: it answers preflights by itself.
  const answer = withCors(config.http.corsOrigins, handler);
  const listener: HttpHandler = (request, response) => {
    if (isLate(request) || isTooMany(request, response)) return;
    request.url = pathOf(request.url);
    response.once("finish", () => {
      if (draining && "closeIdleConnections" in server) setImmediate(() => server.closeIdleConnections());
    });
    boundRequest(request, response, config.callTimeoutMs);
    // Answers hold tokens and people, of which no cache may keep a copy (RFC 6749, section 5.1).
    response.setHeader("cache-control", "no-store");
    answer(request, response);
  };

  const server: Server | Http2SecureServer = certificates
    ? createSecureServer(
        {
          ...certificates.secureServerOptions(),
          ...HTTP2_OPTIONS,
          settings: { ...HTTP2_SETTINGS, maxConcurrentStreams: config.grpc.maxConcurrentStreams },
        },
        listener as never,
      )
    : createServer(listener);
  certificates?.onChange((options) => (server as Http2SecureServer).setSecureContext(options));
  // Node would answer these by itself, within none of the bounds.
  server.on("checkExpectation", listener as never);
  server.on("connect", (request: HttpRequest, to: HttpResponse | Socket) => {
    if (to instanceof Socket) to.destroy();
    else listener(request, to);
  });
  cutOffEnded(server);
  if (certificates) answerNoneGone(server as Http2SecureServer);
  server.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.once("close", () => sockets.delete(socket));
  });
  server.on("session", (session: ServerHttp2Session) => {
    endIdle(session, config.grpc.connectionIdleMs);
    endSilent(session, config.callTimeoutMs);
    // Its handshake was under way when the drain began: nobody else would close it.
    if (draining) session.close();
  });

  return {
    async listen() {
      await once(server.listen(config.http.port, config.http.host), "listening");
      return (server.address() as AddressInfo).port;
    },
    drain() {
      draining = true;
      return new Promise<void>((resolve) => server.close(() => resolve()));
    },
    force() {
      // Http2SecureServer has no closeAllConnections.
      for (const socket of sockets) socket.destroy();
    },
  };
};
