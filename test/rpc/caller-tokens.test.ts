import { describe, expect, test } from "vitest";
import { expectRefusal } from "../support/refusals.ts";
import { startService, transports } from "../support/service.ts";

describe.each(transports)("%s", (transport) => {
  const listTenants = async (authorization: (token: string) => string) => {
    const service = await startService(transport);
    return service.as(undefined, { authorization: authorization(service.rootToken) }).org.listTenants({});
  };

  test.each<[string, (token: string) => string]>([
    ["in lower case", (token) => `bearer ${token}`],
    ["in capitals", (token) => `BEARER ${token}`],
    ["with spaces behind it", (token) => `Bearer   ${token}`],
  ])("the scheme may be written %s", async (_how, authorization) => {
    expect(await listTenants(authorization)).toMatchObject({ $typeName: "org.v1.ListTenantsResponse" });
  });

  test.each<[string, (token: string) => string]>([
    ["another scheme", (token) => `Basic ${token}`],
    ["no scheme", (token) => token],
    ["something before it", (token) => `Not Bearer ${token}`],
    ["something behind it", (token) => `Bearer ${token} more`],
    ["more than a token may have", (token) => `Bearer${" ".repeat(4_096)}${token}`],
  ])("a token with %s proves nobody", async (_how, authorization) => {
    await expectRefusal(listTenants(authorization), "CALLER_TOKEN_INVALID");
  });
});
