// Ends with 1 where proto says more than proto/baseline.binpb, which would not hold what is new to later changes: seen from
// the new, the old has dropped it.
import { spawnSync } from "node:child_process";

const BASELINE = "proto/baseline.binpb";
const config = JSON.stringify({ version: "v2", breaking: { use: ["FILE"] } });

const { status, error } = spawnSync(
  "buf",
  ["breaking", BASELINE, "--against", ".", "--exclude-imports", "--config", config],
  { stdio: "inherit" },
);
if (status !== 0) {
  if (error) throw error;
  console.error(`${BASELINE} lacks what these name: npm run proto:baseline`);
  process.exitCode = 1;
}
