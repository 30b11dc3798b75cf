import { z } from "zod";

/** What most statements about a service answer: which one they found or changed. */
export const svcIdRow = z.object({ svc_id: z.string() });

/** Likewise about a secret. */
export const secretIdRow = z.object({ secret_id: z.string() });
