import { type ClientReadableStream, type ServiceError, credentials, makeClientConstructor } from "@grpc/grpc-js";
import { service } from "grpc-health-check";

interface HealthStub {
  check(
    request: object,
    options: object,
    answer: (error: ServiceError | null, value?: { status: string }) => void,
  ): void;
  list(
    request: object,
    answer: (error: ServiceError | null, value?: { statuses: Record<string, { status: string }> }) => void,
  ): void;
  watch(request: object): ClientReadableStream<{ status: string }>;
  close(): void;
}

const HealthClient = makeClientConstructor(service, "Health");
const PROBE_MS = 1_000;

/** As Kubernetes and balancers ask: a plain gRPC client that knows the standard alone. */
export const healthClient = (port: number) => {
  // The pool of the process would hand out a connection that an earlier client opened.
  const options = { "grpc.use_local_subchannel_pool": 1 };
  return new HealthClient(`127.0.0.1:${port}`, credentials.createInsecure(), options) as unknown as HealthStub;
};

/** One probe as kubelet makes it, on a connection of its own: the status, or the number of the error's code. */
export const probe = (port: number, name: string): Promise<string | number> => {
  const client = healthClient(port);
  return new Promise<string | number>((resolve) => {
    client.check({ service: name }, { deadline: Date.now() + PROBE_MS }, (error, value) =>
      resolve(error ? error.code : (value?.status ?? "")),
    );
  }).finally(() => client.close());
};

/** Everything that a Watch hears; `ended` is the code of its end. */
export const watchHealth = (port: number, name: string) => {
  const client = healthClient(port);
  const heard: string[] = [];
  const stream = client.watch({ service: name });
  const { promise: ended, resolve } = Promise.withResolvers<number>();
  stream.on("data", ({ status }: { status: string }) => heard.push(status));
  stream.on("status", ({ code }: { code: number }) => resolve(code));
  stream.on("error", () => undefined);
  return {
    heard,
    ended,
    cancel() {
      stream.cancel();
      client.close();
    },
  };
};
