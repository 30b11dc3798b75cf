import { create, toBinary } from "@bufbuild/protobuf";
import {
  AuthenticateServiceRequestSchema,
  VerifyServiceTokenRequestSchema,
} from "../../src/gen/service_identity/v1/service_identity_pb.ts";
import { type BenchService, type Measured, measure } from "./service.ts";

const row = ({ perSecond, cpuMicroseconds, p50Ms, p99Ms, failures }: Measured) => ({
  "calls/s": Math.round(perSecond),
  "calls/s and core": Math.round(1_000_000 / cpuMicroseconds),
  "p50 ms": p50Ms.toFixed(2),
  "p99 ms": p99Ms.toFixed(2),
  failures,
});

/** Signing in, which writes, and verifying, which mostly remembers; by the service's own processor time for a core. */
export const benchServiceTokens = async (service: BenchService): Promise<void> => {
  const method = "/service_identity.v1.ServiceIdentityService";
  const signIn = create(AuthenticateServiceRequestSchema, { key: "root", secret: service.rootSecret });
  const verify = create(VerifyServiceTokenRequestSchema, { serviceToken: service.token, permission: "org.node.read" });
  const authenticated = await measure(service, {
    path: `${method}/AuthenticateService`,
    messages: [Buffer.from(toBinary(AuthenticateServiceRequestSchema, signIn)).toString("base64")],
  });
  const verified = await measure(service, {
    path: `${method}/VerifyServiceToken`,
    messages: [Buffer.from(toBinary(VerifyServiceTokenRequestSchema, verify)).toString("base64")],
  });
  console.table({ AuthenticateService: row(authenticated), VerifyServiceToken: row(verified) });
};
