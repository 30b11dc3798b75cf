import { generateKeyPairSync } from "node:crypto";
import type { ServerResponse } from "node:http";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { type Google, createGoogle } from "../../src/auth/google.ts";
import { Call, detached } from "../../src/rpc/call.ts";
import type { Reason } from "../../src/rpc/refusal.ts";
import { type Answer, CLIENT_ID, type GoogleIssuer, startGoogleIssuer } from "../support/google-issuer.ts";
import { expectRefusal } from "../support/refusals.ts";
import { launchService, transports } from "../support/service.ts";

const TIMEOUT_MS = 10_000;
// Long enough for an answer on a busy machine.
const SHORT_TIMEOUT_MS = 1_000;

let issuer: GoogleIssuer;
let google: Google;
const trusting = (timeoutMs: number) => createGoogle({ clientIds: [CLIENT_ID], jwksUrl: issuer.url, timeoutMs });
beforeEach(async () => {
  // The clock is the test's, and timers go on.
  vi.useFakeTimers({ toFake: ["Date", "performance"] });
  issuer = await startGoogleIssuer();
  google = trusting(TIMEOUT_MS);
});
afterEach(async () => {
  vi.useRealTimers();
  await issuer.close();
});

const pass = (seconds: number) => vi.advanceTimersByTime(seconds * 1_000);
/** The machine's clock is set, and no time passes. */
const setClock = (seconds: number) => vi.setSystemTime(Date.now() + seconds * 1_000);
const verify = async (header: Readonly<Record<string, unknown>> = {}) =>
  google.verify(detached(), await issuer.token({ header }), undefined);
const expectReason = (work: Promise<unknown>, reason: Reason) => expect(work).rejects.toMatchObject({ reason });
const httpDate = (inSeconds: number) => new Date(Date.now() + inSeconds * 1_000).toUTCString();

const answerText =
  (text: string, status = 200): Answer =>
  (response) => {
    response.writeHead(status, { "content-type": "application/json" });
    response.end(text);
  };

const publicJwk = (key: { export(options: { format: "jwk" }): object }, more: object) =>
  JSON.stringify({ keys: [{ ...key.export({ format: "jwk" }), ...more }] });

describe("Google's keys", () => {
  test("are asked for once, however many need them at once", async () => {
    await Promise.all(Array.from({ length: 50 }, () => verify()));
    expect(issuer.asked()).toBe(1);
  });

  test.each([
    ["as Google sends it", { "cache-control": "public, max-age=600, must-revalidate, no-transform" }, 600],
    ["max-age, some of it spent in other caches", { "cache-control": "max-age=600", age: "100" }, 500],
    ["the same with an age that nothing has", { "cache-control": "max-age=600", age: "-1000000" }, 600],
    ["for one's own cache", { "cache-control": "private, max-age=60" }, 60],
    ["for shared caches, which this is none of", { "cache-control": "max-age=60, s-maxage=600" }, 60],
    ["what is written in capitals", { "cache-control": "Public, Max-Age=600" }, 600],
    ["a date", { date: httpDate(0), expires: httpDate(120) }, 120],
    ["nothing", {}, 300],
    ["nothing but that it may be kept", { "cache-control": "public" }, 300],
    ["when it was changed last", { "last-modified": httpDate(-1_000_000) }, 300],
    ["what is too long to trust it", { "cache-control": "max-age=31536000, immutable" }, 86_400],
    ["the same, most of it spent in other caches", { "cache-control": "max-age=31536000", age: "86000" }, 400],
  ])("are kept by what the answer says: %s", async (_name, headers, seconds) => {
    issuer.publish(headers);
    await verify();
    pass(seconds - 2);
    await verify();
    expect(issuer.asked()).toBe(1);
    pass(4);
    await verify();
    expect(issuer.asked()).toBe(2);
  });

  test.each([
    { "cache-control": "no-store" },
    { "cache-control": "no-cache" },
    { "cache-control": "max-age=0" },
    { pragma: "no-cache" },
  ])("are asked for again each time where it says %j", async (headers) => {
    issuer.publish(headers);
    for (const times of [1, 2, 3]) {
      await verify();
      expect(issuer.asked()).toBe(times);
    }
  });

  test("are asked for again where they went stale while the machine slept, as its clock alone knows", async () => {
    issuer.publish({ "cache-control": "max-age=600" });
    await verify();
    setClock(602);
    await verify();
    expect(issuer.asked()).toBe(2);
  });

  test("are trusted no longer, and new ones found as soon, where the machine's clock is set back", async () => {
    issuer.publish({ "cache-control": "max-age=600, stale-if-error=86400", age: "60" });
    const old = await issuer.token();
    await google.verify(detached(), old, undefined);
    await expectReason(verify({ kid: "made-up" }), "ID_TOKEN_INVALID");
    setClock(-3 * 3_600);
    await issuer.rotate();
    pass(31);
    await verify();
    const { privateKey: signWith } = issuer.keys;
    setClock(-3 * 3_600);
    await issuer.rotate();
    pass(541);
    const withdrawn = await issuer.token({ header: { kid: "key-2" }, signWith });
    await expectReason(google.verify(detached(), withdrawn, undefined), "ID_TOKEN_INVALID");
  });

  test("outlast an outage while they are fresh, and not a second longer", async () => {
    issuer.publish({ "cache-control": "max-age=600, stale-if-error=86400, stale-while-revalidate=86400" });
    await verify();
    await issuer.down();
    pass(598);
    await verify();
    pass(4);
    await expectReason(verify(), "IDENTITY_PROVIDER_UNAVAILABLE");
    await issuer.up();
    await verify();
  });

  test("are asked for again where a token names one that is not known yet", async () => {
    const old = await issuer.token();
    await google.verify(detached(), old, undefined);
    await issuer.rotate();
    await verify();
    expect(issuer.asked()).toBe(2);
    await expectReason(google.verify(detached(), old, undefined), "ID_TOKEN_INVALID");
  });

  test("are asked for at most once in 30 seconds for ids that somebody made up", async () => {
    await verify();
    const flood = (from: number) =>
      Promise.all(
        Array.from({ length: 50 }, (_, n) => expectReason(verify({ kid: `made-up-${from + n}` }), "ID_TOKEN_INVALID")),
      );
    await flood(0);
    await flood(50);
    expect(issuer.asked()).toBe(2);
    pass(29);
    await flood(100);
    expect(issuer.asked()).toBe(2);
    pass(2);
    await flood(150);
    expect(issuer.asked()).toBe(3);
    await verify();
    expect(issuer.asked()).toBe(3);
  });

  test("that are unknown are no fault of the token's during an outage, which known ones do not notice", async () => {
    await verify();
    issuer.answer(answerText("", 503));
    for (const kid of ["new-1", "new-2"]) await expectReason(verify({ kid }), "IDENTITY_PROVIDER_UNAVAILABLE");
    expect(issuer.asked()).toBe(2);
    await verify();
    await issuer.rotate();
    issuer.publish();
    await expectReason(verify(), "IDENTITY_PROVIDER_UNAVAILABLE");
    pass(2);
    await verify();
    expect(issuer.asked()).toBe(3);
  });

  const weak = generateKeyPairSync("rsa", { modulusLength: 1_024 }).publicKey;
  const curve = generateKeyPairSync("ec", { namedCurve: "P-256" }).publicKey;
  const rubbish: [string, Answer][] = [
    ["an error", answerText('{"keys":[]}', 500)],
    ["a page", answerText("<html>Sign in to the hotel's network</html>")],
    ["nothing", answerText("")],
    ["no object", answerText("[]")],
    ["no list of keys", answerText('{"keys":{}}')],
    ["no key", answerText('{"keys":[]}')],
    ["a key that is none", answerText('{"keys":[{"kty":"RSA","kid":"key-1","n":"","e":""}]}')],
    ["a key that is too weak", answerText(publicJwk(weak, { kid: "key-1" }))],
    ["a key of another kind", answerText(publicJwk(curve, { kid: "key-1" }))],
    [
      "keys in too long an answer",
      (response, request) => answerText(JSON.stringify(issuer.jwks()) + " ".repeat(65_536))(response, request),
    ],
    [
      "a redirect",
      (response, request) => {
        if (request.url?.endsWith("?elsewhere")) answerText(JSON.stringify(issuer.jwks()))(response, request);
        else response.writeHead(302, { location: `${issuer.url}?elsewhere` }).end();
      },
    ],
    ["half of an answer", (response) => response.writeHead(200, { "content-length": 9_999 }).write('{"keys"')],
    ["an answer that breaks off", (response) => response.socket?.resetAndDestroy()],
    ["no answer at all", () => undefined],
  ];
  test.each(rubbish)("are out of reach where the server gives %s, and asked for again after", async (_name, answer) => {
    google = trusting(SHORT_TIMEOUT_MS);
    issuer.answer(answer);
    const began = performance.now();
    await expectReason(verify(), "IDENTITY_PROVIDER_UNAVAILABLE");
    expect(performance.now() - began).toBeLessThan(SHORT_TIMEOUT_MS * 3);
    issuer.publish();
    await verify();
  });

  test("that are published in rubbish do not take the place of fresh ones", async () => {
    await verify();
    issuer.answer(answerText('{"keys":[]}'));
    await expectReason(verify({ kid: "new" }), "IDENTITY_PROVIDER_UNAVAILABLE");
    await verify();
  });

  test("of kinds and uses that are not ours are passed over", async () => {
    const [own] = issuer.jwks().keys;
    const others = [
      { ...curve.export({ format: "jwk" }), kid: "curve" },
      { kty: "oct", kid: "secret", k: "c2VjcmV0" },
      { ...own, kid: "for-encryption", use: "enc" },
      { ...own, kid: "of-another-algorithm", alg: "RS512" },
      { kty: "future" },
      "rubbish",
    ];
    issuer.answer(answerText(JSON.stringify({ keys: [...others, own] })));
    await verify();
    for (const kid of ["curve", "secret", "for-encryption", "of-another-algorithm"]) {
      await expectReason(verify({ kid }), "ID_TOKEN_INVALID");
    }
  });

  test("come to those who wait for them where another gives up", async () => {
    const asked = Promise.withResolvers<ServerResponse>();
    issuer.answer((response) => asked.resolve(response));
    const impatient = new Call("request", 60_000);
    const token = await issuer.token();
    const gaveUp = google.verify(impatient, token, undefined);
    const waits = google.verify(detached(), token, undefined);
    const response = await asked.promise;
    impatient.end("CANCELLED");
    impatient.close();
    await expectReason(gaveUp, "CANCELLED");
    response.end(JSON.stringify(issuer.jwks()));
    await waits;
    expect(issuer.asked()).toBe(1);
  });
});

describe.each(transports)("%s: Google's key server", (transport) => {
  test("is answered for as out of reach, by the caller's deadline, and works again when it does", async () => {
    const service = await launchService(transport, { env: { ...issuer.env, GOOGLE_TIMEOUT: "5s" } });
    try {
      const { auth, addTenant } = service;
      const ids = { tenantId: await addTenant(), createUser: true };
      const request = { ...ids, idToken: await issuer.token() };
      issuer.answer(() => undefined);
      const began = performance.now();
      const [one, two] = [{ timeoutMs: 100 }, { timeoutMs: 200 }].map((options) =>
        auth.loginWithGoogle(request, options),
      );
      await Promise.all([expect(one).rejects.toThrow(/deadline/i), expect(two).rejects.toThrow(/deadline/i)]);
      expect(performance.now() - began).toBeLessThan(2_000);
      await issuer.down();
      await expectRefusal(auth.loginWithGoogle(request), "IDENTITY_PROVIDER_UNAVAILABLE");
      const link = { ...request, userId: ids.tenantId };
      await expectRefusal(auth.linkGoogleIdentity(link), "IDENTITY_PROVIDER_UNAVAILABLE");
      await issuer.up();
      issuer.publish();
      expect((await auth.loginWithGoogle(request)).created).toBe(true);
      const before = issuer.asked();
      const madeUp = Array.from({ length: 40 }, async (_, n) => {
        const idToken = await issuer.token({ header: { kid: `made-up-${n}` } });
        await expectRefusal(auth.loginWithGoogle({ ...ids, idToken }), "ID_TOKEN_INVALID");
      });
      await Promise.all(madeUp);
      expect(issuer.asked()).toBe(before + 1);
    } finally {
      await service.stop();
    }
  });
});
