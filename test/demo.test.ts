import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, onTestFinished, test } from "vitest";
import { CHILD_ENV } from "./support/child-env.ts";
import { startService } from "./support/service.ts";

const COMMAND = fileURLToPath(new URL("../src/commands/demo.ts", import.meta.url));

/** The command in a process of its own, away from the checkout, whose .env could name another server. */
const runDemo = async (): Promise<string> => {
  const { grpcPort, rootSecret } = await startService("grpc");
  const dataDir = await mkdtemp(join(tmpdir(), "auth-demo-"));
  onTestFinished(() => rm(dataDir, { recursive: true }));
  await writeFile(join(dataDir, "root.secret"), rootSecret, { mode: 0o600 });
  const env = { ...CHILD_ENV, GRPC_HOST: "127.0.0.1", GRPC_PORT: String(grpcPort), DATA_DIR: dataDir };
  const { stdout } = await promisify(execFile)(process.execPath, [COMMAND], { cwd: "/", env });
  return stdout;
};

test("the demo prints what README shows, also where an earlier one has made its capabilities", async () => {
  const readme = await readFile(new URL("../README.md", import.meta.url), "utf8");
  for (let run = 0; run < 2; run++) {
    const [tenant = "", ...lines] = (await runDemo()).trimEnd().split("\n");
    expect(tenant).toMatch(/^Tenant [0-9a-f-]{36}$/);
    expect(readme).toContain(`\n${lines.join("\n")}\n`);
  }
});
