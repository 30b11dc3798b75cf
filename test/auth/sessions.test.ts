import { describe, expect, test } from "vitest";
import { sql } from "slonik";
import { startService, transports } from "../support/service.ts";
import { signInBy } from "../support/sign-in.ts";

describe.each(transports)("%s", (transport) => {
  test("a login opens a session and says how", async () => {
    const service = await startService(transport);
    const signIn = await signInBy(service);
    const { sessionId, userId } = await signIn({ client: { ip: "192.0.2.7", userAgent: "A" } });
    expect(
      await service.pool.one(
        sql.unsafe`SELECT user_id, generation, client_ip_text FROM refresh_sessions WHERE session_id = ${sessionId}::uuid`,
      ),
    ).toMatchObject({ user_id: userId, generation: 0, client_ip_text: "192.0.2.7" });
    expect(
      await service.pool.any(
        sql.unsafe`SELECT action_key, payload_json FROM audit_events WHERE entity_id = ${sessionId}::uuid`,
      ),
    ).toMatchObject([{ action_key: "auth.session.create", payload_json: { method: "password", user_id: userId } }]);
  });
});
