import { describe, expect, test } from "vitest";
import { startService, transports } from "../support/service.ts";

const jwksOf = ({ httpPort }: { readonly httpPort: number | undefined }, method = "GET") =>
  fetch(`http://127.0.0.1:${httpPort}/.well-known/jwks.json`, { method });

describe.each(transports)("%s", (transport) => {
  test("the keys are answered to anybody, the same by RPC and by HTTP", async () => {
    const service = await startService(transport);
    const { jwksJson } = await service.as(undefined).auth.getJwks({});
    const response = await jwksOf(service);
    expect(response.status).toBe(200);
    expect(await response.text()).toBe(jwksJson);
    const { keys } = JSON.parse(jwksJson) as { keys: object[] };
    expect(keys).toHaveLength(1);
    expect(Object.keys(keys[0]!).sort()).toEqual(["alg", "crv", "kid", "kty", "use", "x"]);
  });
});

test("caches keep the keys for less time than a rotation's first step lasts, and only reading is answered", async () => {
  const service = await startService("connect");
  const { headers } = await jwksOf(service);
  expect(headers.get("cache-control")).toBe("public, max-age=60");
  expect(headers.get("content-type")).toBe("application/json");
  expect((await jwksOf(service, "HEAD")).status).toBe(200);
  expect((await jwksOf(service, "POST")).status).toBe(404);
});
