import { readFileSync } from "node:fs";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { runScript } from "../support/catalog.ts";
import { plantWindows } from "../support/erasures.ts";
import { type TestService, launchForFile, startService } from "../support/service.ts";
import { addUser } from "../support/users.ts";

const TABLES = ["org_assignments", "visibility_grants"] as const;

const plant = async (server: TestService) => {
  const user = await addUser(server);
  await plantWindows(server, user);
  return user;
};

describe.each(TABLES)("%s", (table) => {
  test.each([
    ["start_utc", "-infinity"],
    ["start_utc", "infinity"],
    ["start_utc", "0001-12-31 23:59:59.999999+00 BC"],
    ["end_utc", "infinity"],
    ["end_utc", "10000-01-01 00:00:00+00"],
    ["cancelled_utc", "-infinity"],
  ])("no %s is %s, which no Timestamp holds", async (column, time) => {
    const server = await startService("grpc");
    const { userId } = await plant(server);
    const write = server.pool.query(sql.unsafe`
      UPDATE ${sql.identifier([table])} SET ${sql.identifier([column])} = ${time}::timestamptz
      WHERE user_id = ${userId}::uuid AND end_utc IS NULL AND cancelled_utc IS NULL`);
    await expect(write).rejects.toMatchObject({ constraint: `${table}_times_check` });
  });
});

test("an end that was loaded as infinite is none, once the database is migrated", async () => {
  const server = await launchForFile("grpc");
  const { tenantId, userId } = await plant(server);
  const lists = async () => ({
    ...(await server.org.listAssignments({ tenantId, userId })),
    ...(await server.org.listVisibilityGrants({ tenantId, userId })),
  });
  const before = await lists();
  for (const table of TABLES) {
    const [name, check] = [sql.identifier([table]), sql.identifier([`${table}_times_check`])];
    await server.pool.query(sql.unsafe`ALTER TABLE ${name} DROP CONSTRAINT ${check}`);
    await server.pool.query(sql.unsafe`UPDATE ${name} SET end_utc = 'infinity' WHERE end_utc IS NULL`);
  }
  const file = new URL("../../migrations/committed/000008-window-times.sql", import.meta.url);
  await runScript(server.databaseUrl, readFileSync(file, "utf8").replace(/^--.*\n/gm, ""));
  expect(await lists()).toEqual(before);
});
