import { BinaryReader, BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { Client, credentials } from "@grpc/grpc-js";

const asIs = (bytes: Buffer) => bytes;

// Of grpc/reflection/v1/reflection.proto, whose v1alpha has the same numbers.
const FILE_BY_NAME = 3;
const FILE_WITH_SYMBOL = 4;
const LIST_SERVICES = 7;
const DESCRIPTORS = 4;
const SERVICES = 6;
const ERROR = 7;

/** The bytes of each field, by its number. */
const fieldsOf = (bytes: Uint8Array): Map<number, Uint8Array[]> => {
  const fields = new Map<number, Uint8Array[]>();
  for (const reader = new BinaryReader(bytes); reader.pos < reader.len;) {
    const [number, type] = reader.tag();
    if (type === WireType.LengthDelimited) fields.set(number, [...(fields.get(number) ?? []), reader.bytes()]);
    else reader.skip(type, number);
  }
  return fields;
};

/** Speaks server reflection by its numbers alone, as any tool would. */
export const reflectionClient = (port: number, version: "v1" | "v1alpha") => {
  const client = new Client(`127.0.0.1:${port}`, credentials.createInsecure());
  const path = `/grpc.reflection.${version}.ServerReflection/ServerReflectionInfo`;

  const ask = (field: number, value: string): Promise<Map<number, Uint8Array[]>> =>
    new Promise((resolve, reject) => {
      const stream = client.makeBidiStreamRequest(path, asIs, asIs, { deadline: Date.now() + 5_000 });
      stream.once("data", (bytes: Buffer) => resolve(fieldsOf(bytes)));
      stream.once("error", reject);
      stream.end(Buffer.from(new BinaryWriter().tag(field, WireType.LengthDelimited).string(value).finish()));
    });

  const files = async (field: number, name: string): Promise<Uint8Array[]> => {
    const answer = await ask(field, name);
    if (answer.has(ERROR)) throw new Error(`reflection knows no ${name}`);
    return (answer.get(DESCRIPTORS) ?? []).flatMap((bytes) => fieldsOf(bytes).get(1) ?? []);
  };

  return {
    async services(): Promise<string[]> {
      const [list = new Uint8Array()] = (await ask(LIST_SERVICES, "*")).get(SERVICES) ?? [];
      return (fieldsOf(list).get(1) ?? []).map((service) =>
        Buffer.from(fieldsOf(service).get(1)?.[0] ?? []).toString(),
      );
    },
    file: (name: string) => files(FILE_BY_NAME, name),
    fileWith: (symbol: string) => files(FILE_WITH_SYMBOL, symbol),
    close: () => client.close(),
  };
};
