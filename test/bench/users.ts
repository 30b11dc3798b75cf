import { randomBytes } from "node:crypto";
import { type Client, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { AuthService } from "../../src/gen/auth/v1/auth_pb.ts";
import type { BenchService } from "./service.ts";

export const PASSWORD = "correct horse battery";

export interface BenchUser {
  readonly tenantId: string;
  readonly userId: string;
  readonly email: string;
}

export type AuthClient = Client<typeof AuthService>;

/** A client of root's. */
export const authClient = ({ origin, token }: BenchService): AuthClient => {
  const transport = createGrpcTransport({
    baseUrl: origin,
    interceptors: [
      (next) => (request) => {
        request.header.set("authorization", `Bearer ${token}`);
        return next(request);
      },
    ],
  });
  return createClient(AuthService, transport);
};

export const addBenchTenant = async ({ org }: BenchService): Promise<string> =>
  (await org.createTenant({ label: "Bench" })).tenant?.tenantId ?? "";

/** One who can sign in, unless no password is given. */
export const addBenchUser = async (auth: AuthClient, tenantId: string, password?: string): Promise<BenchUser> => {
  const email = `${randomBytes(8).toString("hex")}@example.com`;
  const { user } = await auth.createUser({ tenantId, email, ...(password !== undefined && { password }) });
  return { tenantId, userId: user?.userId ?? "", email };
};

export const logIn = async (auth: AuthClient, { tenantId, email }: BenchUser, password = PASSWORD) =>
  auth.loginWithPassword({ tenantId, identifier: { case: "email", value: email }, password });

/** Keeps `concurrency` calls under way for some seconds; answers how many ended in a second. */
export const keepCalling = async (
  concurrency: number,
  seconds: number,
  call: (worker: number, count: number) => Promise<unknown>,
): Promise<number> => {
  const started = performance.now();
  let calls = 0;
  const work = async (worker: number) => {
    for (let count = 0; performance.now() < started + seconds * 1_000; count++) {
      await call(worker, count);
      calls++;
    }
  };
  await Promise.all(Array.from({ length: concurrency }, (_, worker) => work(worker)));
  return (calls * 1_000) / (performance.now() - started);
};
