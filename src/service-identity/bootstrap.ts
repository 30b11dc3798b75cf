import { sql } from "slonik";
import { v7 as uuidv7 } from "uuid";
import { z } from "zod";
import { type Actors, recordEvent } from "../audit/record.ts";
import type { Database } from "../db/pool.ts";
import { transact } from "../db/transact.ts";
import type { Macs } from "../macs.ts";
import { detached } from "../rpc/call.ts";
import { insertPermissions } from "./permissions.ts";
import { createSecret } from "./secrets.ts";
import { insertService, serviceEvent, updateServiceState } from "./services.ts";

const ROOT_KEY = "root";
const ROOT_PERMISSIONS = ["*"];

const rootRow = z.object({ svc_id: z.string(), svc_state_code: z.string() });

const lockRoot = () => sql.type(rootRow)`
  SELECT s.svc_id, s.svc_state_code FROM services s
  WHERE s.tenant_id IS NULL AND s.svc_key = ${ROOT_KEY} FOR NO KEY UPDATE`;

/** A command has no caller: the event's actors are empty. */
const nobody = (): Actors => ({ requestId: uuidv7(), actor: undefined, callerIfAny: undefined });

/**
 * Makes the first service, `root`, which may do everything. Of many at once exactly one makes it.
 * @returns its secret, or undefined where `root` is there already.
 */
export const bootstrapRoot = (db: Database, macs: Macs): Promise<string | undefined> =>
  transact(db, detached(), async (tx) => {
    const serviceId = uuidv7();
    const created = await tx.maybeOne(insertService(serviceId, null, ROOT_KEY, "Root"));
    if (!created) return undefined;
    await tx.any(insertPermissions(serviceId, ROOT_PERMISSIONS));
    const { secretId, secret } = await createSecret(tx, macs, serviceId);
    const root = { svc_id: serviceId, tenant_id: null };
    const payload = { key: ROOT_KEY, permissions: ROOT_PERMISSIONS, secret_id: secretId };
    await recordEvent(tx, nobody(), { ...serviceEvent("service.register", root), payload });
    return secret;
  });

/**
 * Makes `root` usable again for who can reach the database: a new secret, and `*` and its active state where they are
 * gone. Its other secrets stay as they are.
 * @returns the secret, or undefined where there is no `root`.
 */
export const recoverRoot = (db: Database, macs: Macs): Promise<string | undefined> =>
  transact(db, detached(), async (tx) => {
    const found = await tx.maybeOne(lockRoot());
    if (!found) return undefined;
    const root = { svc_id: found.svc_id, tenant_id: null };
    if (found.svc_state_code !== "active") {
      await tx.one(updateServiceState(found.svc_id, "active"));
      await recordEvent(tx, nobody(), serviceEvent("service.enable", root));
    }
    const granted = await tx.any(insertPermissions(found.svc_id, ROOT_PERMISSIONS));
    if (granted.length > 0) {
      const payload = { permissions: ROOT_PERMISSIONS };
      await recordEvent(tx, nobody(), { ...serviceEvent("service.permissions.grant", root), payload });
    }
    const { secretId, secret } = await createSecret(tx, macs, found.svc_id);
    const payload = { secret_id: secretId };
    await recordEvent(tx, nobody(), { ...serviceEvent("service.secret.create", root), payload });
    return secret;
  });
