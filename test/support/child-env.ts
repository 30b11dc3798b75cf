/** What a process that a test starts has of our environment: little, so that a variable of this machine decides nothing. */
export const CHILD_ENV: NodeJS.ProcessEnv = {
  PATH: process.env["PATH"],
  NODE_COMPILE_CACHE: process.env["NODE_COMPILE_CACHE"],
};
