import { durationMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { v7 as uuidv7 } from "uuid";
import { z } from "zod";
import { recordEvent } from "../audit/record.ts";
import { type Tx, read, transact } from "../db/transact.ts";
import type { ServiceIdentityService } from "../gen/service_identity/v1/service_identity_pb.ts";
import type { Macs } from "../macs.ts";
import type { Handlers } from "../rpc/methods.ts";
import { Refusal, refusal } from "../rpc/refusal.ts";
import { makeCredential } from "./credentials.ts";
import type { ServiceIdentityParts } from "./parts.ts";
import { secretIdRow } from "./rows.ts";
import { endSecret } from "./service-sessions.ts";
import { lockTarget, serviceEvent, visibleService } from "./services.ts";

const secretRow = z.object({
  secret_id: z.string(),
  svc_id: z.string(),
  created_utc: z.number(),
  revoked_utc: z.number().nullable(),
  last_used_utc: z.number().nullable(),
});

/** So many of the secrets that a rotation ends are named in its event, which every watcher must be able to receive. */
const NAMED_MAX = 1_000;

const insertSecret = (secretId: string, serviceId: string, hash: string) => sql.type(secretIdRow)`
  INSERT INTO service_secrets (secret_id, svc_id, secret_hash_text)
  VALUES (${secretId}::uuid, ${serviceId}::uuid, ${hash}) RETURNING secret_id`;

/** The one that the service was registered with. */
export const selectFirstSecret = (serviceId: string) => sql.type(secretIdRow)`
  SELECT x.secret_id FROM service_secrets x WHERE x.svc_id = ${serviceId}::uuid
  ORDER BY x.created_utc, x.secret_id LIMIT 1`;

const selectSecrets = (serviceId: string) => sql.type(secretRow)`
  SELECT x.secret_id, x.svc_id, x.created_utc, x.revoked_utc, x.last_used_utc
  FROM service_secrets x WHERE x.svc_id = ${serviceId}::uuid ORDER BY x.created_utc, x.secret_id`;

/** Those that would end earlier keep their time. By the statement's time: now() is from before the wait for the service. */
const updateOtherSecretsEnd = (serviceId: string, secretId: string, overlapMs: number) => sql.type(secretIdRow)`
  UPDATE service_secrets SET revoked_utc = statement_timestamp() + ${overlapMs}::float8 * interval '1 millisecond'
  WHERE svc_id = ${serviceId}::uuid AND secret_id <> ${secretId}::uuid
    AND (revoked_utc IS NULL OR revoked_utc > statement_timestamp() + ${overlapMs}::float8 * interval '1 millisecond')
  RETURNING secret_id`;

const selectSecret = (serviceId: string, secretId: string) => sql.type(secretIdRow)`
  SELECT x.secret_id FROM service_secrets x
  WHERE x.svc_id = ${serviceId}::uuid AND x.secret_id = ${secretId}::uuid`;

/**
 * Makes a secret, which is in the answer alone, and stores its MAC: the entropy is in the secret, so a slow hash would only
 * help a flood.
 */
export const createSecret = async (tx: Tx, macs: Macs, serviceId: string) => {
  const secretId = uuidv7();
  const secret = makeCredential("sks", secretId);
  await tx.one(insertSecret(secretId, serviceId, macs.tag("credential", secret)));
  return { secretId, secret };
};

const secretMessage = (row: z.output<typeof secretRow>) => ({
  secretId: row.secret_id,
  serviceId: row.svc_id,
  createTime: timestampFromMs(row.created_utc),
  ...(row.revoked_utc !== null && { revokeTime: timestampFromMs(row.revoked_utc) }),
  ...(row.last_used_utc !== null && { lastUsedTime: timestampFromMs(row.last_used_utc) }),
});

export const secretHandlers = ({ db, macs, tokens }: ServiceIdentityParts) =>
  ({
    createServiceSecret: ({ serviceId }, call) =>
      transact(db, call, async (tx) => {
        const target = await lockTarget(tx, call, serviceId);
        if (target instanceof Refusal) return target;
        const made = await createSecret(tx, macs, serviceId);
        const payload = { secret_id: made.secretId };
        await recordEvent(tx, call, { ...serviceEvent("service.secret.create", target), payload });
        return made;
      }),

    rotateServiceSecret: ({ serviceId, overlap }, call) =>
      transact(db, call, async (tx) => {
        const target = await lockTarget(tx, call, serviceId);
        if (target instanceof Refusal) return target;
        const made = await createSecret(tx, macs, serviceId);
        const overlapMs = overlap ? durationMs(overlap) : 0;
        const ended = await tx.any(updateOtherSecretsEnd(serviceId, made.secretId, overlapMs));
        const payload = {
          secret_id: made.secretId,
          ended_secret_ids: ended.slice(0, NAMED_MAX).map((row) => row.secret_id),
          ended_secrets: ended.length,
          overlap_ms: overlapMs,
        };
        await recordEvent(tx, call, { ...serviceEvent("service.secret.rotate", target), payload });
        return made;
      }),

    async revokeServiceSecret({ serviceId, secretId }, call) {
      await transact(
        db,
        call,
        async (tx) => {
          const target = await lockTarget(tx, call, serviceId);
          if (target instanceof Refusal) return target;
          const named = await tx.maybeOne(selectSecret(serviceId, secretId));
          if (!named) return refusal("SERVICE_SECRET_NOT_FOUND", { secret_id: secretId });
          if (!(await endSecret(tx, serviceId, secretId))) return undefined;
          const payload = { secret_id: named.secret_id };
          await recordEvent(tx, call, { ...serviceEvent("service.secret.revoke", target), payload });
          return undefined;
        },
        { settled: tokens.forget },
      );
      return {};
    },

    async listServiceSecrets({ serviceId }, call) {
      const secrets = await read(db, call, async (connection) => {
        const service = await visibleService(connection, call, serviceId);
        return service instanceof Refusal ? service : connection.any(selectSecrets(serviceId));
      });
      if (secrets instanceof Refusal) throw secrets;
      return { secrets: secrets.map(secretMessage) };
    },
  }) satisfies Partial<Handlers<typeof ServiceIdentityService>>;
