import { sql } from "slonik";
import { z } from "zod";
import { recordEvent } from "../audit/record.ts";
import { transact } from "../db/transact.ts";
import type { ServiceIdentityService } from "../gen/service_identity/v1/service_identity_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import { Refusal, invalid, refusal } from "../rpc/refusal.ts";
import { isLastRoot, lockRoots } from "./roots.ts";
import type { ServiceIdentityParts } from "./parts.ts";
import { lockTarget, serviceEvent, serviceMessage } from "./services.ts";

/** Of one service: every token's verification looks through them. */
const PERMISSIONS_MAX = 100;

const permissionRow = z.object({ perm_key: z.string() });

/** Answers with the permissions that were not held before. */
export const insertPermissions = (serviceId: string, permissions: readonly string[]) => sql.type(permissionRow)`
  INSERT INTO service_permissions (svc_id, perm_key)
  SELECT ${serviceId}::uuid, k.perm_key FROM unnest(${sql.array(permissions, "text")}) AS k (perm_key)
  ON CONFLICT DO NOTHING
  RETURNING perm_key`;

const deletePermissions = (serviceId: string, permissions: readonly string[]) => sql.type(permissionRow)`
  DELETE FROM service_permissions p
  WHERE p.svc_id = ${serviceId}::uuid AND p.perm_key = ANY (${sql.array(permissions, "text")})
  RETURNING p.perm_key`;

export const permissionHandlers = ({ db, tokens }: ServiceIdentityParts) =>
  ({
    async grantServicePermissions({ serviceId, permissions }, call) {
      const service = await transact(
        db,
        call,
        async (tx) => {
          const target = await lockTarget(tx, call, serviceId, permissions);
          if (target instanceof Refusal) return target;
          const held = new Set(target.perm_keys);
          const wanted = held.union(new Set(permissions));
          if (wanted.size > held.size && wanted.size > PERMISSIONS_MAX) {
            return invalid({ field: "permissions", description: `a service has at most ${PERMISSIONS_MAX}` });
          }
          const granted = (await tx.any(insertPermissions(serviceId, permissions))).map((row) => row.perm_key).sort();
          if (granted.length === 0) return target;
          const payload = { permissions: granted };
          await recordEvent(tx, call, { ...serviceEvent("service.permissions.grant", target), payload });
          return { ...target, perm_keys: [...target.perm_keys, ...granted].sort() };
        },
        { settled: tokens.forget },
      );
      return { service: serviceMessage(service) };
    },

    async revokeServicePermissions({ serviceId, permissions }, call) {
      const service = await transact(
        db,
        call,
        async (tx) => {
          const takesRoot = permissions.includes("*");
          if (takesRoot) await lockRoots(tx);
          const target = await lockTarget(tx, call, serviceId);
          if (target instanceof Refusal) return target;
          if (takesRoot && (await isLastRoot(tx, serviceId))) return refusal("LAST_ROOT_SERVICE");
          const revoked = (await tx.any(deletePermissions(serviceId, permissions))).map((row) => row.perm_key).sort();
          if (revoked.length === 0) return target;
          const payload = { permissions: revoked };
          await recordEvent(tx, call, { ...serviceEvent("service.permissions.revoke", target), payload });
          return { ...target, perm_keys: target.perm_keys.filter((key) => !revoked.includes(key)) };
        },
        { settled: tokens.forget },
      );
      return { service: serviceMessage(service) };
    },
  }) satisfies Partial<Handlers<typeof ServiceIdentityService>>;
