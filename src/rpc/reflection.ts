import { type DescFile, type DescService, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import type { Server } from "@grpc/grpc-js";
import { ReflectionService } from "@grpc/reflection";
import { file_grpc_health_v1_health } from "../gen/grpc/health/v1/health_pb.ts";

/** A file and all that it imports, imports first. */
const withImports = (file: DescFile): DescFile[] => [...file.dependencies.flatMap(withImports), file];

/** What stands in @grpc/reflection behind each version: a file as it decoded it, and the bytes that it answers with. */
type Encodings = Readonly<Record<"v1" | "v1Alpha", { fileEncodings: Map<{ readonly name: string }, Uint8Array> }>>;

/** Serves reflection v1 and v1alpha for the services and health, so that `buf curl` and grpcurl need no proto files. */
export const addReflection = (server: Server, services: readonly DescService[]): void => {
  const files = new Set([file_grpc_health_v1_health, ...services.map(({ file }) => file)].flatMap(withImports));
  const bytes = new Map(
    Array.from(files, ({ proto }) => [proto.name, Buffer.from(toBinary(FileDescriptorProtoSchema, proto))]),
  );
  // @grpc/reflection reads nothing of a definition but these bytes.
  const reflection = new ReflectionService({ files: { fileDescriptorProtos: [...bytes.values()] } as never });
  // It encodes what it decoded, which loses every option that it does not know: callers would see neither who may call
  // nor the fields' rules.
  const { v1, v1Alpha } = reflection as unknown as Encodings;
  for (const { fileEncodings } of [v1, v1Alpha]) {
    for (const file of fileEncodings.keys()) fileEncodings.set(file, bytes.get(file.name) ?? Buffer.alloc(0));
  }
  reflection.addToServer(server);
};
