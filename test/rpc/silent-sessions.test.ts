import { once } from "node:events";
import { connect } from "node:http2";
import { connect as connectTls } from "node:tls";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import type { RunningServer } from "../../src/server.ts";
import { type TestDatabase, createDatabase } from "../support/database.ts";
import { HTTP2_PREFACE } from "../support/frames.ts";
import { serveTls } from "../support/serve-tls.ts";

let database: TestDatabase;
let server: RunningServer;
let ca: string;
beforeAll(async () => {
  database = await createDatabase();
  ({ server, ca } = await serveTls(database.url, { CALL_TIMEOUT: "300ms" }));
});
afterAll(async () => {
  await server.stop();
  await database.drop();
});

describe.each([
  ["gRPC", () => server.grpcPort],
  ["HTTP", () => server.httpPort!],
])("%s: a connection on which nothing goes on", (_, port) => {
  test("is ended where its peer does not say that he is there", async () => {
    const peer = connectTls({ port: port(), host: "localhost", ca, ALPNProtocols: ["h2"] });
    onTestFinished(() => void peer.destroy());
    peer.write(HTTP2_PREFACE);
    await once(peer.resume(), "end");
  });

  test("lasts where he does", async () => {
    const session = connect(`https://localhost:${port()}`, { ca });
    onTestFinished(() => session.destroy());
    for (let asked = 0; asked < 2; asked++) await once(session, "ping");
    expect(session.closed).toBe(false);
  });
});
