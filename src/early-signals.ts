import { constants } from "node:os";

// Preloaded by the image, whose first process this is: until `main.ts` has loaded and listens, the kernel would throw
// away a signal that nobody handles, and the container would go on until it is killed.
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => process.exit(128 + constants.signals[signal]));
}
