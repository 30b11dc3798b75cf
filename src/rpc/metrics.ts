import { Code } from "@connectrpc/connect";
import { Counter, Gauge, Histogram, type Metric, Registry, collectDefaultMetrics } from "prom-client";

/** Under these names gRPC's users know server metrics (go-grpc-middleware). */
const CALL_LABELS = ["grpc_type", "grpc_service", "grpc_method", "grpc_code"] as const;
type CallLabels = Readonly<Record<(typeof CALL_LABELS)[number], string>>;
const SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];

/** gRPC's own spelling of codes, as metrics and logs show them. */
export const codeName = (code: Code | 0): string => (code === 0 ? "OK" : Code[code]);

interface Series {
  readonly labels: CallLabels;
  /** How many calls fell below each bound and above the one before it; the last for those above all. */
  readonly inBucket: number[];
  seconds: number;
}

/**
 * A histogram that counts by itself and tells prom-client when it is scraped: prom-client's own hashes the labels at each
 * observation, bound or not, which cost a call more than its counting.
 */
const createHandling = (name: string, help: string) => {
  const all: Series[] = [];
  const rowsOf = ({ labels, inBucket, seconds }: Series) => {
    let count = 0;
    const buckets = inBucket.map((calls, bucket) => ({
      metricName: `${name}_bucket`,
      labels: { le: SECONDS[bucket] ?? "+Inf", ...labels },
      value: (count += calls),
    }));
    return [
      ...buckets,
      { metricName: `${name}_sum`, labels, value: seconds },
      { metricName: `${name}_count`, labels, value: count },
    ];
  };
  const values = () => all.flatMap(rowsOf);
  return {
    /** What a registry reads of a metric. */
    metric: {
      name,
      help,
      type: "histogram",
      get: () => Promise.resolve({ name, help, type: "histogram", values: values() }),
    },
    calls: () =>
      all.map(({ labels, inBucket }) => ({ labels, calls: inBucket.reduce((sum, calls) => sum + calls, 0) })),
    series(labels: CallLabels): (seconds: number) => void {
      const series: Series = { labels, inBucket: Array<number>(SECONDS.length + 1).fill(0), seconds: 0 };
      all.push(series);
      return (seconds) => {
        let bucket = 0;
        while (seconds > (SECONDS[bucket] ?? Infinity)) bucket++;
        series.inBucket[bucket] = (series.inBucket[bucket] ?? 0) + 1;
        series.seconds += seconds;
      };
    },
  };
};

/** How a method answers, as go-grpc-middleware names it. */
export type CallType = "unary" | "server_stream";

/** Counts one method's calls. */
export type CallMeter = (code: Code | 0, seconds: number) => void;

export interface Metrics {
  readonly registry: Registry;
  meter(type: CallType, service: string, method: string): CallMeter;
  readonly observePoolWait: (seconds: number) => void;
  /** Adds gauges that are read when they are scraped. */
  watchPool(load: () => { inside: number; waiting: number }): void;
  watchPasswordQueue(length: () => number): void;
  readonly countRefusedTry: (act: string) => void;
  setHealthy(healthy: boolean): void;
}

let processRegistry: Registry | undefined;

/** Once, however many servers a process runs: their timers and observers never end, and each of them costs on. */
const processMetrics = (): Registry => {
  if (!processRegistry) collectDefaultMetrics({ register: (processRegistry = new Registry()) });
  return processRegistry;
};

/** A gauge that is read when it is scraped. */
export const addGauge = (registry: Registry, name: string, help: string, read: () => number): void => {
  new Gauge({
    name,
    help,
    registers: [registry],
    collect() {
      this.set(read());
    },
  });
};

export const createMetrics = (version: string): Metrics => {
  const registry = Registry.merge([processMetrics()]);
  const registers = [registry];
  const handling = createHandling(
    "grpc_server_handling_seconds",
    "Seconds from a call's arrival to its answer, or to a stream's end.",
  );
  // A registry's type knows prom-client's own metrics alone.
  registry.registerMetric(handling.metric as unknown as Metric);
  // Every call is counted once, by the histogram.
  new Counter({
    name: "grpc_server_handled_total",
    help: "Calls answered, by method and code.",
    labelNames: CALL_LABELS,
    registers,
    collect() {
      this.reset();
      for (const { labels, calls } of handling.calls()) this.inc(labels, calls);
    },
  });
  const poolWait = new Histogram({
    name: "database_pool_wait_seconds",
    help: "Seconds that a use of the database waited for a connection.",
    buckets: SECONDS,
    registers,
  });
  const refusedTries = new Counter({
    name: "throttle_refused_total",
    help: "Tries that a throttle refused, by what was tried.",
    labelNames: ["act"],
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
    meter(type, service, method) {
      // Looking labels up costs more than counting: each method and code is looked up once.
      const bound = new Map<Code | 0, (seconds: number) => void>();
      return (code, seconds) => {
        let observe = bound.get(code);
        if (!observe) {
          const labels = { grpc_type: type, grpc_service: service, grpc_method: method, grpc_code: codeName(code) };
          bound.set(code, (observe = handling.series(labels)));
        }
        observe(seconds);
      };
    },
    observePoolWait: (seconds) => poolWait.observe(seconds),
    watchPool(load) {
      const inUse = "Connections of the pool that are in use.";
      addGauge(registry, "database_pool_connections_in_use", inUse, () => load().inside);
      addGauge(registry, "database_pool_waiting", "Uses that wait for a connection.", () => load().waiting);
    },
    watchPasswordQueue(length) {
      addGauge(registry, "password_hash_queue_length", "Passwords that wait to be hashed or verified.", length);
    },
    countRefusedTry: (act) => refusedTries.inc({ act }),
    setHealthy: (value) => healthy.set(value ? 1 : 0),
  };
};
