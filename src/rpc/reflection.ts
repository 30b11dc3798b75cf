import { type DescFile, type DescService, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import type { Server } from "@grpc/grpc-js";
import { ReflectionService } from "@grpc/reflection";
import { file_grpc_health_v1_health } from "../gen/grpc/health/v1/health_pb.ts";

/** A file and all that it imports, imports first. */
const withImports = (file: DescFile): DescFile[] => [...file.dependencies.flatMap(withImports), file];

/** Serves reflection v1 and v1alpha for the services and health, so that `buf curl` and grpcurl need no proto files. */
export const addReflection = (server: Server, services: readonly DescService[]): void => {
  const files = [file_grpc_health_v1_health, ...services.map(({ file }) => file)].flatMap(withImports);
  const fileDescriptorProtos = [...new Set(files)].map(({ proto }) =>
    Buffer.from(toBinary(FileDescriptorProtoSchema, proto)),
  );
  // @grpc/reflection reads nothing of a definition but these bytes.
  new ReflectionService({ files: { fileDescriptorProtos } as never }).addToServer(server);
};
