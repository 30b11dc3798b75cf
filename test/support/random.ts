import { randomInt } from "node:crypto";

/** A generator of numbers that are the same for the same seed: from 0 to below `bound`. */
export const randomNumbers = (seed: number): ((bound: number) => number) => {
  let state = seed;
  // mulberry32
  return (bound) => {
    state = (state + 0x6d2b79f5) | 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return Math.floor((((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32) * bound);
  };
};

/** A seed that is printed, so that a failure can be run again with it as SEED in the environment. */
export const printedSeed = (): number => {
  const seed = Number(process.env["SEED"] ?? randomInt(2 ** 31));
  process.stdout.write(`SEED=${seed}\n`);
  return seed;
};
