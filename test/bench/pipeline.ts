import { create, toBinary } from "@bufbuild/protobuf";
import { VerifyServiceTokenRequestSchema } from "../../src/gen/service_identity/v1/service_identity_pb.ts";
import { type BenchService, measure, median } from "./service.ts";

const ROUNDS = 5;

// A token of no known form: caller, permission, validation, log and metrics are the whole of what this call does.
const noOp = {
  path: "/service_identity.v1.ServiceIdentityService/VerifyServiceToken",
  messages: [
    Buffer.from(
      toBinary(VerifyServiceTokenRequestSchema, create(VerifyServiceTokenRequestSchema, { serviceToken: "none" })),
    ).toString("base64"),
  ],
};
const check = { path: "/grpc.health.v1.Health/Check", messages: [""], headers: {} };

/** The whole pipeline against the barest RPC of the same server, in turn. Target: 0.85 of its rate. */
export const benchPipeline = async (service: BenchService): Promise<void> => {
  const rounds = [];
  for (let round = 0; round < ROUNDS; round++) {
    rounds.push({ bare: await measure(service, check), whole: await measure(service, noOp) });
  }
  console.table(
    rounds.map(({ bare, whole }) => ({
      "Check/s": Math.round(bare.perSecond),
      "no-op/s": Math.round(whole.perSecond),
      ratio: (whole.perSecond / bare.perSecond).toFixed(3),
      "Check µs CPU": bare.cpuMicroseconds.toFixed(1),
      "no-op µs CPU": whole.cpuMicroseconds.toFixed(1),
      "CPU ratio": (bare.cpuMicroseconds / whole.cpuMicroseconds).toFixed(3),
    })),
  );
  const ratio = median(rounds.map(({ bare, whole }) => whole.perSecond / bare.perSecond));
  console.log(`no-op RPC through the pipeline: ${ratio.toFixed(3)} of Check's rate (median of ${ROUNDS} rounds)`);
};
