import { sql } from "slonik";
import { expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import { read } from "../../src/db/transact.ts";
import { detached } from "../../src/rpc/call.ts";
import { administer, databaseName, plantUnchecked, withPool } from "../support/admin.ts";
import { createDatabase } from "../support/database.ts";
import { openFor } from "../support/open-database.ts";
import { CHEAP_HASHES, PASSWORD } from "../support/passwords.ts";
import { addCapabilities, addRole } from "../support/roles.ts";
import { launchService } from "../support/service.ts";
import { addNode, plantSubtree } from "../support/trees.ts";
import { addUser } from "../support/users.ts";

const ROWS = 5_000;
const RUNS = 3;

const readRow = z.object({ relname: z.string(), seq_tup_read: z.bigint() });

test.each([
  ["what has a name is prepared once for a connection", {}, ["select-one"]],
  ["behind PgBouncer nothing is", { DATABASE_PGBOUNCER: "on" }, []],
])("%s", async (_name, env, prepared) => {
  const database = await createDatabase();
  onTestFinished(() => database.drop());
  const db = openFor(database.url, { ...env, DATABASE_POOL_MAX: "1" });
  const selectOne = sql.prepared("select-one", z.object({ one: z.number() }))`SELECT 1 AS one`;
  const selectPrepared = sql.type(z.object({ name: z.string() }))`SELECT name FROM pg_prepared_statements`;
  for (let time = 0; time < 2; time++) await read(db, detached(), (connection) => connection.one(selectOne));
  expect(await read(db, detached(), (connection) => connection.anyFirst(selectPrepared))).toEqual(prepared);
});

test("among many rows no statement of these calls reads a table through by a plan that sees nothing of what is asked", async () => {
  const env = { ...CHEAP_HASHES, DATABASE_POOL_MAX: "1" };
  const database = await createDatabase();
  onTestFinished(() => database.drop());
  // To which a connection may come by itself for what is prepared, from the sixth time on.
  await administer(
    database.url,
    sql.unsafe`
    ALTER DATABASE ${sql.identifier([databaseName(database.url)])} SET plan_cache_mode = force_generic_plan`,
  );
  const server = await launchService("grpc", { env, databaseUrl: database.url });
  const { auth, org, services } = server;
  const tenantId = await server.addTenant();
  const [capability = ""] = await addCapabilities(server, "read");
  const { roleId } = await addRole(server, { tenantId, capabilityKeys: [capability] });
  const { userId, email = "" } = await addUser(server, { tenantId, password: PASSWORD });
  const { nodeId: root } = await addNode(server, tenantId);
  await plantSubtree(server, tenantId, root, ROWS);
  await plantUnchecked(server, async (tx) => {
    await tx.query(sql.unsafe`
      INSERT INTO users (user_id, tenant_id, email_addr, user_state_code)
      SELECT gen_random_uuid(), ${tenantId}::uuid, n || '@example.com', 'active' FROM generate_series(1, ${ROWS}::int) n`);
    await tx.query(sql.unsafe`
      INSERT INTO user_identities (ident_id, user_id, ident_provider_code, password_hash_text)
      SELECT gen_random_uuid(), u.user_id, 'password', 'x' FROM users u WHERE u.user_id <> ${userId}::uuid`);
    await tx.query(sql.unsafe`
      INSERT INTO refresh_sessions (session_id, user_id, tenant_id, refresh_token_hash_text, refresh_seed, expiry_utc,
        hard_expiry_utc)
      SELECT gen_random_uuid(), u.user_id, u.tenant_id, 'x', '\\x00', now() + interval '1 day', now() + interval '1 day'
      FROM users u`);
    await tx.query(sql.unsafe`
      INSERT INTO login_networks (tenant_id, user_id, network_hash) SELECT u.tenant_id, u.user_id, 'x' FROM users u`);
    await tx.query(sql.unsafe`
      INSERT INTO throttles (throttle_key_hash, hit_count, window_end_utc)
      SELECT 'x' || n, 1, now() + interval '1 hour' FROM generate_series(1, ${ROWS}::int) n`);
    await tx.query(sql.unsafe`
      INSERT INTO org_assignments (assignment_id, tenant_id, user_id, org_node_id, role_id, start_utc)
      SELECT gen_random_uuid(), u.tenant_id, u.user_id, ${root}::uuid, ${roleId}::uuid, now() FROM users u`);
    // What these statements read shall not be counted later.
    await tx.query(sql.unsafe`SELECT pg_stat_force_next_flush()`);
  });
  await server.pool.query(sql.unsafe`VACUUM (ANALYZE)`);
  const readOf = async () => {
    const rows = await withPool(database.url, (pool) =>
      pool.any(sql.type(readRow)`SELECT s.relname::text, s.seq_tup_read FROM pg_stat_user_tables s`),
    );
    return new Map(rows.map(({ relname, seq_tup_read }) => [relname, seq_tup_read]));
  };
  const before = await readOf();

  const { nodeId: other } = await addNode(server, tenantId);
  for (let run = 0; run < RUNS; run++) {
    const identifier = { case: "email", value: email } as const;
    const client = { ip: "192.0.2.1" };
    const { tokens } = await auth.loginWithPassword({ tenantId, identifier, password: PASSWORD, client });
    await auth.verifyAccessToken({ accessToken: tokens!.accessToken });
    await auth.refreshSession({ refreshToken: tokens!.refreshToken });
    await auth.getUser({ tenantId, key: { case: "userId", value: userId } });
    await auth.getUser({ tenantId, key: { case: "email", value: email } });
    await services.verifyServiceToken({ serviceToken: server.rootToken });
    const { nodeId } = await addNode(server, tenantId, root);
    await org.moveNode({ tenantId, nodeId, newParentNodeId: other });
    await org.getNode({ tenantId, nodeId });
    await org.assignRole({ tenantId, userId, nodeId, roleId });
    expect((await org.checkAccess({ tenantId, userId, nodeId, capability })).allowed).toBe(true);
  }
  // What a connection has counted is told at its end.
  await server.stop();
  const after = await readOf();
  const read = [...after].map(([table, rows]) => [table, rows - (before.get(table) ?? 0n)] as const);
  expect(read.filter(([, rows]) => rows >= ROWS)).toEqual([]);
});
