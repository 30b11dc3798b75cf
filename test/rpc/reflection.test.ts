import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { type DescService, createFileRegistry, fromBinary, create, getOption } from "@bufbuild/protobuf";
import { type FileDescriptorProto, FileDescriptorProtoSchema, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { status } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { caller_rule } from "../../src/gen/caller/v1/caller_pb.ts";
import { reflectionClient } from "../support/reflection-client.ts";
import { rpcs, services } from "../support/rpcs.ts";
import { serve } from "../support/serve.ts";
import { type TestService, launchService } from "../support/service.ts";

const HEALTH = "grpc.health.v1.Health";
const REFLECTION = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

let service: TestService;
beforeAll(async () => {
  service = await launchService("grpc", { env: { GRPC_REFLECTION: "on" } });
});
afterAll(() => service.stop());

const connect = (port: number, version: "v1" | "v1alpha") => {
  const client = reflectionClient(port, version);
  onTestFinished(() => client.close());
  return client;
};

describe.each(["v1", "v1alpha"] as const)("reflection %s", (version) => {
  test("lists our services and health", async () => {
    const listed = await connect(service.grpcPort, version).services();
    const ours = [HEALTH, ...services.map(({ typeName }) => typeName)];
    expect(listed.filter((name) => !REFLECTION.includes(name)).toSorted()).toEqual(ours.toSorted());
  });

  test("serves each service's file and all that it imports, with the option that says who may call", async () => {
    const client = connect(service.grpcPort, version);
    const files = new Map<string, FileDescriptorProto>();
    const collect = async (serialized: readonly Uint8Array[]): Promise<void> => {
      for (const file of serialized.map((bytes) => fromBinary(FileDescriptorProtoSchema, bytes))) {
        if (files.has(file.name)) continue;
        files.set(file.name, file);
        for (const name of file.dependency) await collect(await client.file(name));
      }
    };
    for (const name of [HEALTH, ...services.map(({ typeName }) => typeName)])
      await collect(await client.fileWith(name));

    // Building a registry fails where an import is missing.
    const registry = createFileRegistry(create(FileDescriptorSetSchema, { file: inOrder(files) }));
    const reflected = ({ parent, name }: { parent: DescService; name: string }) =>
      registry.getService(parent.typeName)?.methods.find((method) => method.name === name);
    const seen = rpcs.map(({ name, method }) => {
      const found = reflected(method);
      return { name, rule: found && getOption(found, caller_rule).rule };
    });
    expect(seen).toEqual(rpcs.map(({ name, rule }) => ({ name, rule })));
    expect(registry.getService(HEALTH)?.methods.map(({ name }) => name)).toEqual(["Check", "Watch", "List"]);
  });
});

/** Imports first. */
const inOrder = (files: ReadonlyMap<string, FileDescriptorProto>): FileDescriptorProto[] => {
  const ordered = new Set<FileDescriptorProto>();
  const add = (name: string): void => {
    const file = files.get(name);
    if (!file || ordered.has(file)) return;
    file.dependency.forEach(add);
    ordered.add(file);
  };
  [...files.keys()].forEach(add);
  return [...ordered];
};

const buf = async (path: string, ...args: string[]): Promise<string> => {
  const flags = ["--protocol", "grpc", "--http2-prior-knowledge", ...args];
  const url = `http://127.0.0.1:${service.grpcPort}${path}`;
  return (await promisify(execFile)("node_modules/.bin/buf", ["curl", ...flags, url])).stdout;
};

test("buf curl calls us without a proto file", async () => {
  const token = ["--header", `authorization: Bearer ${service.rootToken}`];
  const listed = await buf("/service_identity.v1.ServiceIdentityService/ListServices", ...token, "--data", "{}");
  expect(JSON.parse(listed)).toMatchObject({ services: [{ key: "root", permissions: ["*"] }] });
  const healthy = await buf("/grpc.health.v1.Health/Check", "--data", '{"service":"readiness"}');
  expect(JSON.parse(healthy)).toEqual({ status: "SERVING" });
});

test("GRPC_REFLECTION=off removes both", async () => {
  const server = await serve(service.databaseUrl, { GRPC_REFLECTION: "off" });
  onTestFinished(() => server.stop());
  for (const version of ["v1", "v1alpha"] as const) {
    await expect(connect(server.grpcPort, version).services()).rejects.toMatchObject({ code: status.UNIMPLEMENTED });
  }
});
