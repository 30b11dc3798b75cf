import { Code } from "@connectrpc/connect";
import { Counter, Gauge, Histogram, Registry, collectDefaultMetrics } from "prom-client";

/** Under these names gRPC's users know server metrics (go-grpc-middleware). */
const CALL_LABELS = ["grpc_type", "grpc_service", "grpc_method", "grpc_code"] as const;
type CallLabels = Readonly<Record<(typeof CALL_LABELS)[number], string>>;
const SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];

/** gRPC's own spelling of codes, as metrics and logs show them. */
export const codeName = (code: Code | 0): string => (code === 0 ? "OK" : Code[code]);

/** Counts one method's calls. */
export type CallMeter = (code: Code | 0, seconds: number) => void;

export interface Metrics {
  readonly registry: Registry;
  meter(service: string, method: string): CallMeter;
  readonly observePoolWait: (seconds: number) => void;
  /** Adds gauges that are read when they are scraped. */
  watchPool(load: () => { inside: number; waiting: number }): void;
  setHealthy(healthy: boolean): void;
}

export const createMetrics = (version: string): Metrics => {
  const registry = new Registry();
  const registers = [registry];
  collectDefaultMetrics({ register: registry });
  // Every call is observed once by the histogram; counting it a second time would cost as much again.
  const counts: { readonly labels: CallLabels; calls: number }[] = [];
  new Counter({
    name: "grpc_server_handled_total",
    help: "Calls answered, by method and code.",
    labelNames: CALL_LABELS,
    registers,
    collect() {
      this.reset();
      for (const { labels, calls } of counts) this.inc(labels, calls);
    },
  });
  const handling = new Histogram({
    name: "grpc_server_handling_seconds",
    help: "Seconds from a call's arrival to its answer.",
    labelNames: CALL_LABELS,
    buckets: SECONDS,
    registers,
  });
  const poolWait = new Histogram({
    name: "database_pool_wait_seconds",
    help: "Seconds that a use of the database waited for a connection.",
    buckets: SECONDS,
    registers,
  });
  const healthy = new Gauge({
    name: "database_healthy",
    help: "1 while the database answers and is migrated.",
    registers,
  });
  new Gauge({
    name: "build_info",
    help: "Always 1; the labels say what runs.",
    labelNames: ["version", "node"],
    registers,
  }).set({ version, node: process.version }, 1);

  return {
    registry,
    meter(service, method) {
      // Looking labels up costs more than counting: each method and code is looked up once.
      const bound = new Map<Code | 0, (seconds: number) => void>();
      return (code, seconds) => {
        let observe = bound.get(code);
        if (!observe) {
          const labels = { grpc_type: "unary", grpc_service: service, grpc_method: method, grpc_code: codeName(code) };
          const histogram = handling.labels(labels);
          const count = { labels, calls: 0 };
          counts.push(count);
          observe = (value) => {
            histogram.observe(value);
            count.calls++;
          };
          bound.set(code, observe);
        }
        observe(seconds);
      };
    },
    observePoolWait: (seconds) => poolWait.observe(seconds),
    watchPool(load) {
      new Gauge({
        name: "database_pool_connections_in_use",
        help: "Connections of the pool that are in use.",
        registers,
        collect() {
          this.set(load().inside);
        },
      });
      new Gauge({
        name: "database_pool_waiting",
        help: "Uses that wait for a connection.",
        registers,
        collect() {
          this.set(load().waiting);
        },
      });
    },
    setHealthy: (value) => healthy.set(value ? 1 : 0),
  };
};
