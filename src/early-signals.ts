// Preloaded by the image, whose first process this is: until `main.ts` has loaded and listens, the kernel would throw
// away a signal that nobody handles, and the container would go on until it is killed.
for (const [signal, number] of [
  ["SIGINT", 2],
  ["SIGTERM", 15],
] as const)
  process.once(signal, () => process.exit(128 + number));
