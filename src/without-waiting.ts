import { constants } from "node:fs";

/**
 * How files are opened that the configuration names: a pipe that nobody writes to, for which the opening would wait without
 * an end, is empty.
 */
export const WITHOUT_WAITING = constants.O_RDONLY | constants.O_NONBLOCK;
