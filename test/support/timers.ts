/** How many timers keep this process alive. */
export const countTimers = (): number => process.getActiveResourcesInfo().filter((kind) => kind === "Timeout").length;
